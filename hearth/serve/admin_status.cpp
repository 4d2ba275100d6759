// SPDX-License-Identifier: Apache-2.0
// The status of the admin API as JSON: what the registry, the engine's last numbers and the metrics say of each model.
#include <algorithm>

#include "hearth/base/version.h"
#include "hearth/serve/admin.h"
#include "hearth/serve/reply.h"

namespace hearth {
namespace {

double ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

int64_t block_bytes_of(const ServedModel& served, int64_t block_tokens) {
  const ModelConfig& c = served.model->config();
  const auto layout =
      KvLayout::make(served.kv_format, c.layers, served.model->local_kv_heads(), c.head_dim, block_tokens);
  return layout ? layout->block_bytes() : 0;
}

Json kv_json(const ModelStats& stats, const ServedModel& served) {
  const int64_t block_bytes = block_bytes_of(served, stats.block_tokens);
  Json kv = Json::object();
  kv["format"] = kv_format_name(served.kv_format);
  kv["block_bytes"] = block_bytes;
  kv["block_tokens"] = stats.block_tokens;
  kv["held_bytes"] = stats.kv.live * block_bytes;
  kv["cached_bytes"] = stats.kv.cached * block_bytes;
  kv["borrowed_bytes"] = stats.kv.borrowed * block_bytes;
  kv["lent_bytes"] = stats.kv.unused * block_bytes;
  kv["guarantee_bytes"] = stats.limits.guarantee_bytes;
  kv["cap_bytes"] = stats.limits.cap_bytes;
  kv["most_bytes"] = stats.kv_blocks * block_bytes;
  kv["most_tokens"] = std::min(stats.kv_blocks * stats.block_tokens, served.max_context);
  return kv;
}

Json model_json(const ModelView& view, const std::vector<ModelStats>& all, const Metrics& metrics) {
  Json json = Json::object();
  json["model"] = view.name();
  json["aliases"] = std::vector<std::string>(view.source.names.begin() + 1, view.source.names.end());
  json["state"] = name_of(view.stage);
  json["path"] = view.source.dir.string();
  if (view.stage == ModelStage::kLoading)
    json["progress"] = {{"loaded_bytes", view.loaded_bytes}, {"total_bytes", view.total_bytes}};
  if (view.error) json["error"] = {{"code", error_code_name(view.error->code)}, {"message", view.error->message}};
  if (view.model != nullptr) {
    const ServedModel& served = *view.model->served;
    json["created"] = served.created_s;
    json["load_seconds"] = served.load_seconds;
    json["max_model_len"] = served.max_context;
    json["weight_bytes"] = served.weight_bytes;
    if (view.stage != ModelStage::kReady) json["wake_on_request"] = view.wakes_on_request;
  }
  if (!view.slept_for_it.empty()) json["put_to_sleep"] = view.slept_for_it;
  const auto stats = std::ranges::find(all, view.name(), &ModelStats::model);
  if (stats != all.end()) {
    json["pinned"] = stats->pinned;
    json["running"] = stats->running;
    json["waiting"] = stats->waiting;
    if (view.model != nullptr) json["kv"] = kv_json(*stats, *view.model->served);
    json["prefix_cache"] = {{"asked_tokens", stats->kv.asked_blocks * stats->block_tokens},
                            {"hit_tokens", stats->kv.hit_blocks * stats->block_tokens},
                            {"hit_rate", ratio(stats->kv.hit_blocks, stats->kv.asked_blocks)}};
  }
  if (stats != all.end() && stats->attainment.answers > 0) {
    const SloCounts& slo = stats->attainment;
    json["slo"] = {{"ttft_seconds", static_cast<double>(stats->slo.ttft_us) * 1e-6},
                   {"tpot_seconds", static_cast<double>(stats->slo.tpot_us) * 1e-6},
                   {"answers", slo.answers},
                   {"attained", slo.attained},
                   {"attainment", ratio(slo.attained, slo.answers)}};
  }
  if (const auto work = metrics.work_of(view.name())) {
    json["preemptions"] = work->preemptions;
    json["predicted_steps"] = {{"count", work->predicted_steps},
                               {"predicted_seconds", work->predicted_s},
                               {"measured_seconds", work->measured_s}};
  }
  return json;
}

Json pool_json(const KvPoolStats& pool) {
  Json json = Json::object();
  const int64_t waste = pool.free_bytes + pool.tail_bytes;
  json["bytes"] = pool.pool_bytes;
  json["live_bytes"] = pool.live_bytes;
  json["cached_bytes"] = pool.cached_bytes;
  json["waste_bytes"] = waste;
  json["waste_rate"] = ratio(waste, pool.pool_bytes);
  json["moved_blocks"] = pool.moved_blocks;
  Json& slabs = json["slabs"] = {{"all", pool.slabs}, {"empty", pool.empty_slabs}, {"idle", pool.idle_slabs}};
  Json& formats = slabs["formats"] = Json::array();
  for (const KvFormatStats& f : pool.formats)
    formats.push_back({{"block_bytes", f.block_bytes},
                       {"slabs", f.slabs},
                       {"live_blocks", f.live},
                       {"cached_blocks", f.cached},
                       {"free_blocks", f.free},
                       {"tail_bytes", f.tail_bytes}});
  return json;
}

}  // namespace

ApiResult<std::string> admin_status(std::string_view model, const AdminParts& parts) {
  const std::vector<ModelStats> stats = parts.engine.stats();
  if (!model.empty()) {
    const auto view = parts.models.view(model);
    if (!view) return parts.models.no_such(model);
    return dump(model_json(*view, stats, parts.metrics));
  }
  Json json = Json::object();
  json["version"] = build_info().version;
  json["ready"] = parts.models.ready();
  Json& models = json["models"] = Json::array();
  for (const ModelView& view : parts.models.views()) models.push_back(model_json(view, stats, parts.metrics));
  Json& devices = json["devices"] = Json::array();
  for (const DeviceMemoryStats& device : parts.engine.memory_stats())
    devices.push_back({{"device", device.device},
                       {"total_bytes", device.total_bytes},
                       {"model_bytes", device.model_bytes},
                       {"room_bytes", device.room_bytes},
                       {"kv_pool_bytes", device.pool_bytes}});
  Json& pools = json["kv_pools"] = Json::array();
  for (const KvPoolStats& pool : parts.engine.kv_stats()) pools.push_back(pool_json(pool));
  return dump(json);
}

}  // namespace hearth
