# SPDX-License-Identifier: Apache-2.0
"""Chat templates in the styles that models on the hub use, written for these tests, with conversations to render.

TEMPLATES: name -> (template, special tokens, cases); a case is (name, messages, options), where options may hold
add_generation_prompt, tools, documents and extra template variables. PROBES: small template snippets, each with its variables,
for the Jinja semantics that templates rely on. make_text_golden.py renders all of them with transformers.
"""

# Key order matters: tojson must keep it. The values try non-ASCII text, HTML characters, floats, nesting and null.
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a place, e.g. <Zürich> & 東京",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Name of the town: \"Köln\""},
                "days": {"type": "integer", "minimum": 1, "default": None},
                "accuracy": {"type": "number", "maximum": 0.5, "examples": [1.0, 1e-05, 2.5e20]},
            },
            "required": ["place"],
        },
        "strict": True,
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def tool(text, **more):
    return {"role": "tool", "content": text} | more


def calls(*functions, content=""):
    """An assistant message that calls tools, in the OpenAI form."""
    made = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in functions]
    return {"role": "assistant", "content": content, "tool_calls": made}


PLAIN = [
    ("one turn", [user("Hello there.")], {}),
    ("one turn, prompt", [user("Hello there.")], {"add_generation_prompt": True}),
    ("system", [system("Be brief."), user("Why is the sky blue?")], {"add_generation_prompt": True}),
    ("three turns", [user("One"), assistant("Two"), user("Three")], {"add_generation_prompt": True}),
    (
        "long",
        [system("S\nT"), user("a"), assistant("b"), user("c"), assistant("d")],
        {},
    ),
    ("spaces", [user("  \n padded \t\n"), assistant("\n\nanswer  "), user(" \u00a0x\u3000")], {"add_generation_prompt": True}),
    ("unicode", [user("Grüße, 世界! 👩‍👩‍👧 e\u0301 \u202eabc"), assistant("<b>&amp; \"q\" 'r' \\n</b>"), user("{{ 1 }}{% if %}")], {}),
    ("empty content", [user("")], {"add_generation_prompt": True}),
    ("two users in a row", [user("first"), user("second")], {}),
    ("assistant first", [assistant("I begin."), user("ok")], {}),
    ("unknown role", [user("a"), {"role": "narrator", "content": "b"}], {}),
]

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set intro = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set rest = messages %}{% set intro = '' %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Turns must go user, assistant, user, assistant; turn ' ~ loop.index ~ ' does not.') }}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (intro if loop.first else '') + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

LLAMA3 = (
    "{% for message in messages %}"
    "{% set text = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "01 Jan 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system text is taken out of the messages first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set lead = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set lead = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Knowledge ends: December 2023\\n" }}
{{- "Date today: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- 'Answer with a call {"name": ..., "parameters": ...} of one of these functions.\\n\\n' }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- lead }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("Only one call at a time, found " ~ message.tool_calls | length) }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CHATML = """{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\\nYou help.<|im_end|>' }}
    {% endif %}
    {% if message['role'] == 'assistant' %}
<|im_start|>assistant
{% generation %}
{{ message['content'] }}<|im_end|>
{% endgeneration %}
    {% else %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set lead = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- set spoken = turns | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in turns %}
    {%- if message["role"] in ["user", "assistant"] and not message.get("tool_calls") %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and message == spoken[-1] %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for t in tools %}
                {%- set t = t.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in t.items() if key != "strict" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val | tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {{- ", " if not loop.last else "]" }}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and lead is defined %}
            {{- "[INST] " + lead + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in message.tool_calls %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] }}
            {%- if not call.id is defined or call.id | length != 9 %}
                {{- raise_exception("A tool call id has 9 characters") }}
            {%- endif %}
            {{- ', "id": "' + call.id + '"}' }}
            {{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] in ["tool_results", "tool"] %}
        {%- set content = message.content.content if message.content.content is defined else message.content %}
        {{- '[TOOL_RESULTS] {"content": ' + content | string + '}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Unknown role " + message["role"]) }}
    {%- endif %}
{%- endfor %}
"""

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You help gladly.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nSignatures stand between <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nA call is one JSON object:\\n<tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <object>}\\n</tool_call><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou help gladly.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thoughts = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or thoughts) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

PARTS = """{%- macro say(content, limit=none) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}<image>{%- continue -%}{%- endif -%}
            {%- if part['type'] == 'text' -%}{{ part['text'] | trim }}{%- if not loop.last %} {% endif -%}{%- endif -%}
            {%- if limit is not none and loop.index >= limit -%}{%- break -%}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{ bos_token }}
{%- for d in documents or [] %}
[{{ loop.index }}/{{ loop.length }}] {{ d.title | upper }}: {{ d['text'] | replace('\\n', ' ') }}
{%- endfor %}
{%- for message in messages %}
{{ message.role | capitalize }}: {{ say(message.content, limit=limit | default(none)) }}
{%- if loop.nextitem is defined and loop.nextitem.role == message.role %} (more){% endif %}
{%- endfor %}
{{ 'Assistant:' if add_generation_prompt }}"""

HISTORY = [
    system("Use tools."),
    user("Weather in Köln?"),
    calls(("get_weather", {"place": "Köln <am Rhein>", "days": 2, "accuracy": 0.1})),
    tool('{"rain": true}', name="get_weather"),
    assistant("Rain."),
    user("And the time?"),
]
TWO_CALLS = [
    user("Both, please."),
    calls(("clock", {}), ("get_weather", {"z": [1, 2.0, None, True], "a": "東京"}), content="A moment."),
    tool("12:00"),
    tool("dry"),
]
TOOLS = [
    ("tools", [user("Hi")], {"tools": [WEATHER, CLOCK], "add_generation_prompt": True}),
    ("tools and system", [system(" Sys "), user("Hi")], {"tools": [WEATHER], "add_generation_prompt": True}),
    ("tool history", HISTORY, {"tools": [WEATHER, CLOCK], "add_generation_prompt": True}),
    ("two calls", TWO_CALLS, {"tools": [WEATHER, CLOCK], "add_generation_prompt": True}),
    ("empty tool list", [user("Hi")], {"tools": []}),
]
THOUGHT = "<think>\nFirst this.\nThen that.\n</think>\n\nTherefore."
THINKING = [
    ("thinking off", [user("Hi")], {"add_generation_prompt": True, "enable_thinking": False}),
    ("thinking on", [user("Hi")], {"add_generation_prompt": True, "enable_thinking": True}),
    ("thoughts in history", [user("a"), assistant(THOUGHT), user("b")], {"add_generation_prompt": True}),
    ("thoughts at the end", [user("a"), assistant(THOUGHT)], {}),
    ("reasoning_content", [user("a"), assistant("C") | {"reasoning_content": "\nR\n"}], {}),
    (
        "thoughts and calls",
        [user("a"), calls(("clock", '{"zone": "UTC"}'), content=THOUGHT), tool("1"), tool("2"), assistant("done")],
        {"tools": [CLOCK]},
    ),
    (
        "a tool response as user",
        [user("q"), assistant("x"), user("<tool_response>\n5\n</tool_response>"), assistant("y")],
        {},
    ),
]
IDS = [
    (
        "calls with ids",
        [
            user("Both"),
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "abcdefghi", "function": {"name": "clock", "arguments": {}}},
                    {"id": "123456789", "function": {"name": "get_weather", "arguments": {"place": "Ort"}}},
                ],
            },
            tool("12"),
            tool({"content": 7.5}),
            assistant(" ok "),
            user("thanks"),
        ],
        {"tools": [WEATHER, CLOCK]},
    ),
    ("a wrong id", [user("x"), calls(("clock", {}))], {}),
]
DATED = [
    ("date given", [user("Hi")], {"date_string": "26 Jul 2024", "add_generation_prompt": True}),
    ("tool result as object", [user("x"), calls(("clock", {})), tool({"t": 1, "b": [None, "ü"]})], {}),
]
MANY_PARTS = [
    (
        "parts",
        [
            {"role": "user", "content": [{"type": "text", "text": " A "}, {"type": "image"}, {"type": "text", "text": "B"}]},
            user("again"),
            assistant("Yes"),
        ],
        {"add_generation_prompt": True},
    ),
    (
        "parts, limit",
        [{"role": "user", "content": [{"type": "text", "text": t} for t in "abcd"]}],
        {"limit": 2},
    ),
    (
        "documents",
        [user("Sum up.")],
        {"documents": [{"title": "One", "text": "x\ny"}, {"title": "straße", "text": ""}], "add_generation_prompt": True},
    ),
]

SENTENCE = {"bos_token": "<s>", "eos_token": "</s>"}
HEADER = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
IM = {"eos_token": "<|im_end|>"}

TEMPLATES = {
    "llama2": (LLAMA2, SENTENCE, PLAIN),
    "llama3": (LLAMA3, HEADER, PLAIN),
    "llama31": (LLAMA31, HEADER, PLAIN + TOOLS + DATED),
    "chatml": (CHATML, IM, PLAIN),
    "mistral": (MISTRAL, SENTENCE, PLAIN + TOOLS + IDS),
    "qwen25": (QWEN25, IM, PLAIN + TOOLS),
    "qwen3": (QWEN3, IM, PLAIN + TOOLS + THINKING),
    "zephyr": (ZEPHYR, SENTENCE, PLAIN),
    "parts": (PARTS, SENTENCE, PLAIN + MANY_PARTS),
}

DATA = {"s": "Ab c", "n": 3, "x": 1.5, "t": True, "z": None, "l": [3, 1, 2], "d": {"b": 1, "a": "ä<"}, "e": "", "o": []}
PROBES = {
    # White space.
    "trim_blocks": "{% if t %}\nA\n{% endif %}\nB\n",
    "lstrip_blocks": "x\n   {% if t %}\n  A\n   {% endif %}\n   {{ n }}\n  {# c #}\nB",
    "plus keeps": "x\n   {%+ if t %}\nA\n{% endif +%}\nB",
    "minus": "x \n {%- if t -%} \n A \n {%- endif -%} \n B",
    "comment": "a {#- c -#} b\n{# d #}\ne",
    "trailing newline": "A\n",
    "two trailing newlines": "A\n\n",
    "crlf": "{% if t %}\r\nA\r\n{% endif %}\r\nB",
    "raw": "{% raw %}{{ x }} {% if %}{% endraw %}",
    "expression at line start": "  {{ n }}\n  {{ n }}",
    # Printing.
    "print bool": "{{ t }} {{ not t }} {{ true }} {{ False }}",
    "print none": "{{ z }} {{ none }}",
    "print float": "{{ x }} {{ 2.0 }} {{ 1e20 }} {{ 0.1 + 0.2 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 7 // 2 }} {{ -7 % 3 }} {{ 2 ** 8 }}",
    "print list": "{{ l }} {{ o }} {{ ['a', 1, none, true] }}",
    "print dict": "{{ d }} {{ {} }} {{ {'k': 'v'} }}",
    "print undefined": "[{{ nothing }}] [{{ d.nothing }}] [{{ d['nothing'] }}]",
    "attribute of undefined": "{{ nothing.more }}",
    "concat": "{{ 'a' ~ n ~ x ~ t ~ z }}",
    "plus of string and int": "{{ 'a' + n }}",
    "escapes": "{{ 'a\\n\\t\\'\\\\ \\u00e9' }}{{ \"b'c\" }}",
    "no html escape": "{{ '<b>&\"' }}",
    # tojson.
    "tojson dict": "{{ d | tojson }}",
    "tojson list": "{{ l | tojson }} {{ o | tojson }} {{ {} | tojson }}",
    "tojson indent": "{{ d | tojson(indent=2) }} {{ [1, [], {}] | tojson(indent=4) }}",
    "tojson numbers": "{{ [1, 1.0, 0.5, 1e-05, 1e16, 1e22, -0.0, 123456789012] | tojson }}",
    "tojson text": "{{ 'ä\\u2028 </script> \\\\ \" \\n \\t \\x7f' | tojson }}",
    "tojson ascii": "{{ 'ä😀' | tojson(ensure_ascii=true) }}",
    "tojson separators": "{{ d | tojson(separators=(',', ':')) }}",
    "tojson sorted": "{{ d | tojson(sort_keys=true) }}",
    "tojson null": "{{ z | tojson }} {{ t | tojson }}",
    # Methods of strings, lists and dicts.
    "strip": "[{{ '  a b \\n'.strip() }}][{{ 'xxaxx'.strip('x') }}][{{ '\\n\\na'.lstrip('\\n') }}][{{ 'a  '.rstrip() }}]",
    "strip unicode": "[{{ '\\u00a0\\u3000a\\u2003'.strip() }}]",
    "split": "{{ 'a</t>b</t>c'.split('</t>')[-1] }} {{ 'a  b c'.split() | length }} {{ 'a,b,c'.split(',', 1)[1] }}",
    "starts": "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('bc') }} {{ 'abc'.find('c') }} {{ 'a-b'.replace('-', '+') }}",
    "case": "{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ s.capitalize() }} {{ s | title }} {{ 'straße'.upper() }}",
    "join method": "{{ ', '.join(['a', 'b']) }}",
    "dict methods": "{{ d.get('a') }} {{ d.get('q', 'none') }} {{ d.keys() | list }} {% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "string index": "{{ s[0] }}{{ s[-1] }}{{ s[1:3] }}{{ s[::-1] }}",
    "list slices": "{{ l[::-1] | join(',') }} {{ l[1:] | join(',') }} {{ l[:-1] | join(',') }} {{ l[-1] }}",
    "count": "{{ 'banana'.count('a') }} {{ 'a1'.isalnum() }} {{ '12'.isdigit() }}",
    # Filters and tests.
    "filters": "{{ l | length }} {{ l | first }} {{ l | last }} {{ l | sort | join('-') }} {{ l | sum }} {{ s | replace('b', 'X') }}",
    "items filter": "{% for k, v in d | items %}{{ k }}:{{ v }} {% endfor %}{{ d | dictsort | first | first }}",
    "select": "{{ [{'r': 1}, {'r': 2}, {}] | selectattr('r', 'defined') | map(attribute='r') | list | join(',') }}",
    "reject": "{{ l | reject('equalto', 1) | list | join(',') }} {{ l | select('gt', 1) | join(',') }}",
    "default": "{{ nothing | default('D') }} {{ e | default('D') }} {{ e | default('D', true) }} {{ z | default('D') }}",
    "trim": "[{{ ' \\n a \\t' | trim }}] [{{ 'xax' | trim('x') }}]",
    "indent": "{{ 'a\\nb\\n\\nc' | indent(2) }}",
    "string and int": "{{ 3 | string + '4' }} {{ '42' | int + 1 }} {{ '1.5' | float }} {{ 2.7 | round | int }}",
    "tests": "{{ s is string }} {{ l is iterable }} {{ d is mapping }} {{ l is sequence }} {{ z is none }} {{ n is number }} {{ t is boolean }} {{ nothing is defined }} {{ n is odd }} {{ s is iterable }} {{ t is true }} {{ e is false }}",
    "is not": "{{ n is not none }} {{ not n is defined }} {{ nothing is undefined }} {{ 1 in l }} {{ 'b' in d }} {{ 'b c' in s }} {{ 9 not in l }}",
    "truth": "{{ 'y' if e else 'n' }}{{ 'y' if o else 'n' }}{{ 'y' if 0 else 'n' }}{{ 'y' if z else 'n' }}{{ 'y' if nothing else 'n' }}{{ 'y' if '0' else 'n' }}",
    "and or": "{{ e or 'b' }} {{ n and s }} {{ z or e or 0 }}|{{ 1 if n > 2 and not z }}",
    "if without else": "[{{ 'a' if e }}]",
    # Statements.
    "loop": "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}",
    "loop filter and else": "{% for i in l if i > 5 %}{{ i }}{% else %}none{% endfor %} {% for i in l if i > 1 %}{{ loop.index }}/{{ loop.length }} {% endfor %}",
    "loop neighbours": "{% for i in l %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}",
    "loop cycle": "{% for i in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "break": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "scope": "{% set a = 1 %}{% for i in l %}{% set a = i %}{% endfor %}{{ a }}",
    "namespace": "{% set ns = namespace(a=1, b='') %}{% for i in l %}{% set ns.a = ns.a + i %}{% set ns.b = ns.b ~ i %}{% endfor %}{{ ns.a }} {{ ns.b }}",
    "set block": "{% set a %}x{{ n }}y{% endset %}[{{ a }}]",
    "unpack": "{% set a, b = (1, 'two') %}{{ a }}{{ b }}",
    "macro": "{% macro m(a, b='d') %}<{{ a }}{{ b }}{{ caller is defined }}>{% endmacro %}{{ m(1) }}{{ m('x', b=2) }}",
    "call": "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}in{% endcall %}",
    "filter block": "{% filter upper %}a{{ s }}{% endfilter %}",
    "generation": "a{% generation %}b{{ n }}{% endgeneration %}c",
    "generation and variables": "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
    "range": "{{ range(3) | list }} {{ range(5, 1, -2) | join(' ') }}",
    "dict function": "{{ dict(a=1, b='c') | tojson }}",
    "compare": "{{ 1 < 2 < 3 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ 'a' == 1 }} {{ [1] == [1] }} {{ {'a': 1} == {'a': 1} }}",
    "messages equal": "{% for m in [{'a': 1}, {'a': 2}] %}{{ m == {'a': 2} }} {% endfor %}",
    "strftime": "{{ strftime_now('%Y-%m-%d %H:%M:%S %b %B %d %A %j') }}",
    "tests of globals": "{{ strftime_now is defined }} {{ raise_exception is defined }} {{ bos_token is defined }}",
    # Errors.
    "raise": "a{{ raise_exception('stop here: ' ~ n) }}b",
    "syntax error": "{% if t %}",
    "unknown filter": "{{ s | no_such_filter }}",
    "unknown method": "{{ s.no_such_method() }}",
    "mutation is refused": "{{ l.append(4) }}{{ l }}",
    "underscore attributes": "{{ s.__class__ }}",
    "division by zero": "{{ 1 / 0 }}",
}
