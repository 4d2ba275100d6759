// SPDX-License-Identifier: Apache-2.0
#include "hearth/eval/report.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "hearth/eval/results.h"

namespace hearth {
namespace {

constexpr const char* kErrorRule = "jackknife";

const ReportRow* baseline_of(const Report& report) {
  return report.baseline ? &report.rows[*report.baseline] : nullptr;
}

QualityFigures figures_of(const Report& report, const ReportRow& row, size_t text) {
  const ReportRow* const baseline = baseline_of(report);
  return quality_figures(
      row.windows[text],
      baseline ? std::span<const WindowSums>(baseline->windows[text]) : std::span<const WindowSums>(),
      report.texts[text].ctx);
}

SpeedFigures speed_of(const Report& report, const ReportRow& row, double SpeedSample::*seconds, int64_t tokens) {
  std::vector<double> own, base;
  for (const SpeedSample& sample : row.speed) own.push_back(sample.*seconds);
  if (const ReportRow* const baseline = baseline_of(report))
    for (const SpeedSample& sample : baseline->speed) base.push_back(sample.*seconds);
  return speed_figures(own, base, tokens);
}

// "12.34 ± 0.05"; "-" where there is no such figure
std::string cell(const Estimate& e, int digits, double factor = 1) {
  if (!std::isfinite(e.value)) return "-";
  double value = e.value * factor;
  if (std::abs(value) < 0.5 * std::pow(10.0, -digits)) value = 0;  // not "-0.00"
  std::string text = fmt::format("{:.{}f}", value, digits);
  if (e.standard_error) text += fmt::format(" ± {:.{}f}", *e.standard_error * factor, digits);
  return text;
}

std::string cell(const std::optional<Estimate>& e, int digits) { return e ? cell(*e, digits) : "-"; }

// Names are the user's: a bar would end a cell.
std::string plain(std::string_view text) {
  std::string out;
  for (const char c : text) out += c == '|' || c == '\n' ? ' ' : c;
  return out;
}

std::string models_table(const Report& report) {
  const bool speed = !report.rows.front().speed.empty();
  std::string out = "| model | format | method | KV | bits per weight | MB |";
  std::string rule = "|---|---|---|---|---|---|";
  const auto column = [&](const std::string& title) {
    out += " " + title + " |";
    rule += "---|";
  };
  if (report.lambada) {
    column("LAMBADA %");
    column("change");
  }
  if (speed) {
    column("prefill tokens/s");
    column("decode tokens/s");
    if (report.baseline) {
      column("prefill, times baseline");
      column("decode, times baseline");
    }
  }
  out += "\n" + rule + "\n";
  for (const ReportRow& row : report.rows) {
    out += fmt::format("| {} | {} | {} | {} | {:.3f} | {:.1f} |", plain(row.name), plain(row.format), plain(row.method),
                       row.kv, row.bits_per_weight, static_cast<double>(row.checkpoint_bytes) * 1e-6);
    if (report.lambada) {
      const LambadaFigures f = lambada_figures(row.items, report.rows.front().items);
      out += fmt::format(" {} | {} |", cell(f.acc, 2, 100), cell(f.acc_change, 2, 100));
    }
    if (speed) {
      const SpeedFigures prefill = speed_of(report, row, &SpeedSample::prefill_s, report.speed.prompt_tokens);
      const SpeedFigures decode = speed_of(report, row, &SpeedSample::decode_s, report.speed.decode_tokens);
      out += fmt::format(" {} | {} |", cell(prefill.tokens_per_s, 0), cell(decode.tokens_per_s, 1));
      if (report.baseline) out += fmt::format(" {} | {} |", cell(prefill.ratio, 2), cell(decode.ratio, 2));
    }
    out += "\n";
  }
  return out;
}

std::string text_table(const Report& report, size_t text) {
  const ReportText& t = report.texts[text];
  std::string out =
      fmt::format("### {}\n\n{} windows of {} tokens (list: {}).\n\n", plain(t.name), t.count, t.ctx, plain(t.list));
  out += "| model | KV | perplexity | rise | KL, 1e-3 nats | same top % |";
  if (report.baseline) out += " rise, share of baseline's | KL, share of baseline's |";
  out += report.baseline ? "\n|---|---|---|---|---|---|---|---|\n" : "\n|---|---|---|---|---|---|\n";
  for (const ReportRow& row : report.rows) {
    const QualityFigures f = figures_of(report, row, text);
    out += fmt::format("| {} | {} | {} | {} | {} | {} |", plain(row.name), row.kv, cell(f.ppl, 3), cell(f.ppl_rise, 4),
                       cell(f.kl, 3, 1e3), cell(f.same_top, 2, 100));
    if (report.baseline) out += fmt::format(" {} | {} |", cell(f.rise_share, 3), cell(f.kl_share, 3));
    out += "\n";
  }
  return out;
}

// A figure and its error; null where it is not finite.
void put(nlohmann::json& line, const std::string& name, const Estimate& e) {
  line[name] = std::isfinite(e.value) ? nlohmann::json(e.value) : nlohmann::json();
  if (e.standard_error) line[name + "_standard_error"] = *e.standard_error;
}

nlohmann::json base_line(const Report& report, const ReportRow& row, std::string_view bench) {
  nlohmann::json line = result_line(bench, report.device, report.command);
  line["name"] = row.name;
  line["model"] = row.model;
  line["variant"] = row.variant;
  line["format"] = row.format;
  line["method"] = row.method;
  line["activation"] = row.activation;
  line["kv"] = row.kv;
  line["backend"] = row.backend;
  line["bits_per_weight"] = row.bits_per_weight;
  line["checkpoint_bytes"] = row.checkpoint_bytes;
  if (const ReportRow* const baseline = baseline_of(report)) line["baseline"] = baseline->name;
  return line;
}

nlohmann::json text_line(const Report& report, const ReportRow& row, size_t text) {
  const ReportText& t = report.texts[text];
  const QualityFigures f = figures_of(report, row, text);
  nlohmann::json line = base_line(report, row, "eval.quality");
  line["against"] = report.rows.front().name;
  line["text"] = t.name;
  line["list"] = t.list;
  line["ctx"] = t.ctx;
  line["windows"] = t.count;
  line["tokens"] = t.count * t.ctx;
  line["errors"] = kErrorRule;
  put(line, "ppl", f.ppl);
  put(line, "nll_per_token", f.nll);
  put(line, "ppl_rise", f.ppl_rise);
  put(line, "kl", f.kl);
  put(line, "same_top", f.same_top);
  line["kl_max"] = f.kl_max;
  if (f.rise_share) put(line, "rise_share", *f.rise_share);
  if (f.kl_share) put(line, "kl_share", *f.kl_share);
  return line;
}

nlohmann::json lambada_line(const Report& report, const ReportRow& row) {
  const LambadaFigures f = lambada_figures(row.items, report.rows.front().items);
  nlohmann::json line = base_line(report, row, "eval.quality");
  line["against"] = report.rows.front().name;
  line["text"] = report.lambada->name;
  line["list"] = report.lambada->list;
  line["n"] = row.items.size();
  line["errors"] = kErrorRule;
  put(line, "lambada_acc", f.acc);
  put(line, "lambada_change", f.acc_change);
  put(line, "nll_per_word", f.nll_per_word);
  return line;
}

nlohmann::json speed_line(const Report& report, const ReportRow& row, bool decode) {
  const SpeedTask& task = report.speed;
  const SpeedFigures f = decode ? speed_of(report, row, &SpeedSample::decode_s, task.decode_tokens)
                                : speed_of(report, row, &SpeedSample::prefill_s, task.prompt_tokens);
  nlohmann::json line = base_line(report, row, decode ? "model.decode" : "model.prefill");
  line["config"] = row.model;
  line["batch"] = 1;
  line[decode ? "context" : "length"] = task.prompt_tokens;
  line["rounds"] = row.speed.size();
  line["errors"] = kErrorRule;
  put(line, "tokens_per_s", f.tokens_per_s);
  if (f.ratio) put(line, "speed_ratio", *f.ratio);
  return line;
}

}  // namespace

std::string report_markdown(const Report& report) {
  std::string out = models_table(report) + "\n";
  for (size_t t = 0; t < report.texts.size(); ++t) out += text_table(report, t) + "\n";
  out += fmt::format(
      "The first row, {}, is the reference: rise is perplexity less its perplexity, KL is KL(reference, "
      "model) per token.\n",
      plain(report.rows.front().name));
  if (const ReportRow* const baseline = baseline_of(report))
    out += fmt::format("Shares and ratios are of {}'s figure in this run.\n", plain(baseline->name));
  if (report.lambada)
    out += fmt::format("LAMBADA: {} items of {} (list: {}).\n", report.lambada->count, plain(report.lambada->name),
                       plain(report.lambada->list));
  if (!report.rows.front().speed.empty())
    out += fmt::format(
        "Speed: a prompt of {} tokens, then {} tokens one by one; {} repetitions, the models in turn; {}.\n",
        report.speed.prompt_tokens, report.speed.decode_tokens, report.rows.front().speed.size(), report.device);
  out +=
      "± is one standard error, by the jackknife over windows (items, repetitions); differences, shares and ratios "
      "are paired.\n";
  return out;
}

std::vector<nlohmann::json> report_lines(const Report& report) {
  std::vector<nlohmann::json> lines;
  for (const ReportRow& row : report.rows) {
    for (size_t t = 0; t < report.texts.size(); ++t) lines.push_back(text_line(report, row, t));
    if (report.lambada) lines.push_back(lambada_line(report, row));
    if (row.speed.empty()) continue;
    lines.push_back(speed_line(report, row, false));
    lines.push_back(speed_line(report, row, true));
  }
  return lines;
}

}  // namespace hearth
