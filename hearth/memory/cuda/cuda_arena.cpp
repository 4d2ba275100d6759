// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/cuda/cuda_arena.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <optional>
#include <type_traits>

#include "hearth/base/log.h"
#include "hearth/memory/cuda/cuda_status.h"
#include "hearth/memory/cuda/device.h"

namespace hearth {
namespace {

struct Driver {
  PFN_cuMemGetAllocationGranularity_v10020 granularity = nullptr;
  PFN_cuMemAddressReserve_v10020 reserve = nullptr;
  PFN_cuMemAddressFree_v10020 release = nullptr;
  PFN_cuMemCreate_v10020 create = nullptr;
  PFN_cuMemRelease_v10020 destroy = nullptr;
  PFN_cuMemMap_v10020 map = nullptr;
  PFN_cuMemUnmap_v10020 unmap = nullptr;
  PFN_cuMemSetAccess_v10020 open = nullptr;
};

template <class F>
Status look_up(const char* name, F& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult answer{};
  HEARTH_CUDA_TRY(cudaGetDriverEntryPointByVersion(name, &found, 10020, cudaEnableDefault, &answer));
  if (answer != cudaDriverEntryPointSuccess || found == nullptr)
    return unavailable("the CUDA driver has no {}, wanted one for CUDA 10.2 or newer", name);
  function = reinterpret_cast<F>(found);
  return {};
}

Result<Driver> load_driver() {
  Driver d;
  HEARTH_TRY(look_up("cuMemGetAllocationGranularity", d.granularity));
  HEARTH_TRY(look_up("cuMemAddressReserve", d.reserve));
  HEARTH_TRY(look_up("cuMemAddressFree", d.release));
  HEARTH_TRY(look_up("cuMemCreate", d.create));
  HEARTH_TRY(look_up("cuMemRelease", d.destroy));
  HEARTH_TRY(look_up("cuMemMap", d.map));
  HEARTH_TRY(look_up("cuMemUnmap", d.unmap));
  HEARTH_TRY(look_up("cuMemSetAccess", d.open));
  return d;
}

// Codes of the driver that the runtime has under the same number.
Status check(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return {};
  return cuda_error(static_cast<int>(result), what);
}

void log_failure(CUresult result, const char* what) {
  // At process exit the driver may already be gone, which is no news.
  if (result != CUDA_SUCCESS && result != CUDA_ERROR_DEINITIALIZED)
    spdlog::warn("{}: error {} of the CUDA driver", what, static_cast<int>(result));
}

CUdeviceptr address(std::byte* at) { return reinterpret_cast<CUdeviceptr>(at); }

class CudaPages final : public PageSource {
 public:
  std::string name() const override { return fmt::format("GPU {}", cuda_device()); }

  Result<int64_t> least_bytes() override {
    if (least_bytes_ > 0) return least_bytes_;
    HEARTH_TRY(enter_cuda_device());
    HEARTH_CUDA_TRY(cudaFree(nullptr));  // makes the device's context, without which the driver refuses
    HEARTH_TRY_ASSIGN(driver_, load_driver());
    properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties_.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = cuda_device()};
    size_t bytes = 0;
    HEARTH_TRY(check(driver_.granularity(&bytes, &properties_, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
                     "cuMemGetAllocationGranularity"));
    return least_bytes_ = static_cast<int64_t>(bytes);
  }

  Result<std::pair<int64_t, int64_t>> total_and_free() override {
    HEARTH_TRY(enter_cuda_device());
    size_t free_bytes = 0, total_bytes = 0;
    HEARTH_CUDA_TRY(cudaMemGetInfo(&free_bytes, &total_bytes));
    return std::pair(static_cast<int64_t>(total_bytes), static_cast<int64_t>(free_bytes));
  }

  Result<std::byte*> reserve(int64_t size_bytes) override {
    CUdeviceptr at = 0;
    HEARTH_TRY(check(driver_.reserve(&at, static_cast<size_t>(size_bytes), PageArena::kPageBytes, 0, 0),
                     "cuMemAddressReserve"));
    return reinterpret_cast<std::byte*>(at);
  }
  void release(std::byte* at, int64_t size_bytes) override {
    log_failure(driver_.release(address(at), static_cast<size_t>(size_bytes)), "cuMemAddressFree");
  }

  Result<Page> create(int64_t size_bytes) override {
    CUmemGenericAllocationHandle page = 0;
    HEARTH_TRY(check(driver_.create(&page, static_cast<size_t>(size_bytes), &properties_, 0), "cuMemCreate"));
    return static_cast<Page>(page);
  }
  void destroy(Page page) override { log_failure(driver_.destroy(page), "cuMemRelease"); }

  Status map(std::byte* at, Page page, int64_t size_bytes) override {
    return check(driver_.map(address(at), static_cast<size_t>(size_bytes), 0, page, 0), "cuMemMap");
  }
  Status open(std::byte* at, int64_t size_bytes) override {
    const CUmemAccessDesc access{.location = properties_.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    return check(driver_.open(address(at), static_cast<size_t>(size_bytes), &access, 1), "cuMemSetAccess");
  }
  void settle() override {
    if (const Status settled = synchronize_cuda_device(); !settled)
      spdlog::warn("before memory goes: {}", settled.error().message);
  }
  void unmap(std::byte* at, int64_t size_bytes) override {
    log_failure(driver_.unmap(address(at), static_cast<size_t>(size_bytes)), "cuMemUnmap");
  }

 private:
  Driver driver_;
  CUmemAllocationProp properties_{};
  int64_t least_bytes_ = 0;
};

}  // namespace

PageArena& cuda_arena() {
  // Never destroyed: buffers of static lifetime may outlive them.
  static auto* const pages = new CudaPages;
  static auto* const arena = new PageArena(*pages);
  return *arena;
}

}  // namespace hearth
