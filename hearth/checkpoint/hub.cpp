// SPDX-License-Identifier: Apache-2.0
// The cache's layout: models--org--name/refs/<revision> holds a commit; snapshots/<commit>/ holds the files,
// as links into blobs/ that exist once a file is complete.
#include "hearth/checkpoint/hub.h"

#include <algorithm>
#include <cstdlib>
#include <system_error>
#include <vector>

#include "hearth/checkpoint/file.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;

std::optional<std::string> get_nonempty(const Environment& env, const char* name) {
  auto value = env.get(name);
  if (value && value->empty()) return std::nullopt;
  return value;
}

fs::path expand_home(const std::string& path, const Environment& env) {
  if (path == "~" || path.starts_with("~/")) {
    if (const auto home = get_nonempty(env, "HOME")) return *home + path.substr(1);
  }
  return path;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t at = 0; (at = text.find(separator)) != text.npos; text.remove_prefix(at + 1)) {
    parts.push_back(text.substr(0, at));
  }
  parts.push_back(text);
  return parts;
}

// Letters, digits and -_. , not . or -- at an end or in a row: what the hub allows, and nothing that a path
// could be led astray with.
bool is_repo_part(std::string_view part) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.';
  };
  const auto bad_end = [](char c) { return c == '-' || c == '.'; };
  return !part.empty() && part.size() <= 96 && std::ranges::all_of(part, allowed) && !bad_end(part.front()) &&
         !bad_end(part.back()) && part.find("..") == part.npos && part.find("--") == part.npos;
}

// refs/pr/7 is a revision, so slashes are allowed; leaving the folder is not.
bool is_revision(std::string_view revision) {
  for (const std::string_view part : split(revision, '/')) {
    if (part.empty() || part == "." || part == ".." || part.find('\0') != part.npos) return false;
  }
  return true;
}

bool is_commit(std::string_view text) {
  return text.size() == 40 && std::ranges::all_of(text, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
         });
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

struct RepoName {
  std::string id;  // org/name
  std::string revision;
  bool revision_given = false;

  std::string how_to_fetch() const {
    return fmt::format("`hf download {}{}` fetches it (hearth itself never downloads)", id,
                       revision_given ? " --revision " + revision : "");
  }
};

// The commit that the revision stands for in this cache.
Result<std::string> find_commit(const fs::path& repo_dir, const RepoName& repo) {
  const fs::path ref = repo_dir / "refs" / repo.revision;
  if (is_there(ref)) {
    HEARTH_TRY_ASSIGN(std::string commit, read_text_file(ref, 4096));
    while (!commit.empty() && (commit.back() == '\n' || commit.back() == '\r' || commit.back() == ' ')) {
      commit.pop_back();
    }
    if (!is_commit(commit)) return corrupt("{} holds {}; wanted a commit", ref.string(), quote_name(commit));
    return commit;
  }
  if (is_commit(repo.revision)) return repo.revision;
  return not_found("model {}: revision {} is not in the cache {}; {}", repo.id, quote_name(repo.revision),
                   repo_dir.string(), repo.how_to_fetch());
}

// A link whose blob is gone: a download that was cut off, or a cache that was cleaned by hand.
Status check_complete(const fs::path& snapshot, const RepoName& repo) {
  std::error_code error;
  for (fs::directory_iterator it(snapshot, error), end; !error && it != end; it.increment(error)) {
    const fs::path extension = it->path().extension();
    const bool needed = extension == ".json" || extension == ".safetensors" || extension == ".jinja";
    if (needed && !is_there(it->path())) {
      return not_found("model {}: {} is in the cache only as a link to nothing; {}", repo.id, it->path().string(),
                       repo.how_to_fetch());
    }
  }
  if (error) return io_error(error.value(), "list", snapshot);
  if (!is_there(snapshot / "config.json")) {
    return not_found("model {}: {} has no config.json: the download is incomplete; {}", repo.id, snapshot.string(),
                     repo.how_to_fetch());
  }
  return {};
}

Result<fs::path> find_in_cache(const RepoName& repo, const Environment& env) {
  HEARTH_TRY_ASSIGN(const fs::path cache, hub_cache_dir(env));
  std::string folder = "models";
  for (const std::string_view part : split(repo.id, '/')) folder += fmt::format("--{}", part);
  const fs::path repo_dir = cache / folder;
  if (!is_there(repo_dir)) {
    return not_found("model {}: neither a folder nor in the Hugging Face cache {}; {}", repo.id, cache.string(),
                     repo.how_to_fetch());
  }
  HEARTH_TRY_ASSIGN(const std::string commit, find_commit(repo_dir, repo));
  const fs::path snapshot = repo_dir / "snapshots" / commit;
  if (!is_there(snapshot)) {
    return not_found("model {}: revision {} has no files in the cache ({}); {}", repo.id, quote_name(repo.revision),
                     snapshot.string(), repo.how_to_fetch());
  }
  HEARTH_TRY(check_complete(snapshot, repo));
  return snapshot;
}

}  // namespace

Environment Environment::process() {
  return {[](const char* name) -> std::optional<std::string> {
    const char* value = std::getenv(name);
    if (value == nullptr) return std::nullopt;
    return value;
  }};
}

Result<fs::path> hub_cache_dir(const Environment& env) {
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (const auto value = get_nonempty(env, name)) return expand_home(*value, env);
  }
  if (const auto value = get_nonempty(env, "HF_HOME")) return expand_home(*value, env) / "hub";
  if (const auto value = get_nonempty(env, "XDG_CACHE_HOME")) return expand_home(*value, env) / "huggingface" / "hub";
  if (const auto value = get_nonempty(env, "HOME")) return fs::path(*value) / ".cache" / "huggingface" / "hub";
  return not_found("the Hugging Face cache: none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set");
}

Result<fs::path> resolve_model(std::string_view name_or_path, const Environment& env) {
  if (name_or_path.empty() || name_or_path.find('\0') != name_or_path.npos) {
    return invalid_argument("model {}; wanted a folder or org/name", quote_name(name_or_path));
  }
  const fs::path path(name_or_path);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::directory) return path;
  if (fs::exists(status)) {
    if (path.extension() == ".gguf" || path.extension() == ".bin" || path.extension() == ".pth") {
      return unsupported("model {} is a file of another format; wanted a folder with safetensors: convert it first",
                         quote_name(name_or_path));
    }
    return invalid_argument("model {} is a file; wanted the folder that holds config.json and *.safetensors",
                            quote_name(name_or_path));
  }
  if (status.type() != fs::file_type::not_found && error) return io_error(error.value(), "open", path);

  RepoName repo;
  const size_t at = name_or_path.find('@');
  repo.id = name_or_path.substr(0, at);
  repo.revision_given = at != name_or_path.npos;
  repo.revision = repo.revision_given ? std::string(name_or_path.substr(at + 1)) : "main";
  const auto parts = split(repo.id, '/');
  if (path.is_absolute() || repo.id.starts_with('.') || repo.id.starts_with('~') || repo.id.ends_with('/') ||
      parts.size() > 2) {
    return not_found("model {}: no such folder", quote_name(name_or_path));
  }
  if (!std::ranges::all_of(parts, is_repo_part) || !is_revision(repo.revision)) {
    return invalid_argument("model {} is neither a folder nor a name of the form org/name or org/name@revision",
                            quote_name(name_or_path));
  }
  return find_in_cache(repo, env);
}

Result<FoundModel> find_model(std::string_view typed, const Environment& env, bool dummy) {
  const std::filesystem::path path(typed);
  if (std::error_code ignored; dummy && path.extension() == ".json" && std::filesystem::is_regular_file(path, ignored))
    return FoundModel{path, path.stem().string()};
  HEARTH_TRY_ASSIGN(const std::filesystem::path dir, resolve_model(typed, env));
  std::error_code code;
  if (!std::filesystem::is_directory(std::filesystem::path(typed), code)) return FoundModel{dir, std::string(typed)};
  const std::filesystem::path whole = std::filesystem::weakly_canonical(dir, code);
  return FoundModel{dir, code ? std::string(typed) : whole.filename().string()};
}

}  // namespace hearth
