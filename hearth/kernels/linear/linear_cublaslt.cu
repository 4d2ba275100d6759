// SPDX-License-Identifier: Apache-2.0
// Products of bf16 or E4M3 through cuBLASLt, which is opened at run time (libraries.h). The library's matrices are
// column-major: out^T [n, m] = W [n, k] x^T [k, m], W transposed as it lies.
//   I1. A plan (descriptors and algorithm) is made when a shape, its strides and its alignments are first seen, by the
//       library's heuristic alone: the same shape runs the same algorithm in every run. Sums across blocks go through
//       the workspace, never in place: the same bits in every run.
// Any thread: plans are found under a lock, and never change.
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <memory>
#include <mutex>
#include <type_traits>

#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/libraries.h"

namespace hearth {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what the library asks for on Hopper

struct Functions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtGetStatusName) status_name;
};

Result<Functions> load_functions() {
  HEARTH_TRY_ASSIGN(const SharedLibrary library, open_cublaslt());
  Functions f{};
  const auto find = [&](auto& to, const char* symbol) -> Status {
    HEARTH_TRY_ASSIGN(void* const address, library.function(symbol));
    to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(address);
    return {};
  };
  HEARTH_TRY(find(f.create, "cublasLtCreate"));
  HEARTH_TRY(find(f.matmul, "cublasLtMatmul"));
  HEARTH_TRY(find(f.desc_create, "cublasLtMatmulDescCreate"));
  HEARTH_TRY(find(f.desc_destroy, "cublasLtMatmulDescDestroy"));
  HEARTH_TRY(find(f.desc_set, "cublasLtMatmulDescSetAttribute"));
  HEARTH_TRY(find(f.layout_create, "cublasLtMatrixLayoutCreate"));
  HEARTH_TRY(find(f.layout_destroy, "cublasLtMatrixLayoutDestroy"));
  HEARTH_TRY(find(f.preference_create, "cublasLtMatmulPreferenceCreate"));
  HEARTH_TRY(find(f.preference_destroy, "cublasLtMatmulPreferenceDestroy"));
  HEARTH_TRY(find(f.preference_set, "cublasLtMatmulPreferenceSetAttribute"));
  HEARTH_TRY(find(f.heuristic, "cublasLtMatmulAlgoGetHeuristic"));
  HEARTH_TRY(find(f.status_name, "cublasLtGetStatusName"));
  return f;
}

// A matrix of the product: rows lie `stride` elements apart; `alignment` is that of its start in bytes, at most 256.
struct Side {
  int64_t stride;
  int64_t alignment;
};
struct PlanKey {
  int64_t m, n, k;
  Side x, weight, added, out;
  bool out_f32, fp8;

  bool operator<(const PlanKey& other) const { return numbers() < other.numbers(); }

 private:
  std::array<int64_t, 13> numbers() const {
    return {m,
            n,
            k,
            x.stride,
            x.alignment,
            weight.stride,
            weight.alignment,
            added.stride,
            added.alignment,
            out.stride,
            out.alignment,
            out_f32,
            fp8};
  }
};

int64_t alignment_of(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  return std::min<int64_t>(256, int64_t{1} << std::countr_zero(address | 256));
}

class CublasLt {
 public:
  // The process's only one; the error of a failed start is given again to every caller.
  static Result<CublasLt*> instance() {
    static Result<std::unique_ptr<CublasLt>> made = start();
    if (!made) return made.error();
    return made->get();
  }

  Status run(const CublasLtProduct& p, std::span<std::byte> workspace, void* stream) {
    HEARTH_TRY(enter_cuda_device());
    const PlanKey key{.m = p.x.rows(),
                      .n = p.weight.rows(),
                      .k = p.x.cols(),
                      .x = side(p.x),
                      .weight = side(p.weight),
                      .added = side(p.added),
                      .out = side(p.out),
                      .out_f32 = p.out.dtype == DType::kF32,
                      .fp8 = p.x.dtype == DType::kE4m3};
    HEARTH_TRY_ASSIGN(const Plan* plan, find(key, p));
    if (plan->workspace_bytes > workspace.size())
      return resource_exhausted("linear: a workspace of {} bytes, wanted {}", workspace.size(), plan->workspace_bytes);
    if (!key.fp8) return multiply(p, *plan, plan->operation, workspace, stream);
    // The scales' addresses are part of a description: one for this call alone.
    cublasLtMatmulDesc_t operation = nullptr;
    HEARTH_TRY(describe(key, p, operation));
    const Status status = multiply(p, *plan, operation, workspace, stream);
    static_cast<void>(f_.desc_destroy(operation));
    return status;
  }

 private:
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t x = nullptr, weight = nullptr, added = nullptr, out = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
    size_t workspace_bytes = 0;
  };

  explicit CublasLt(const Functions& functions) : f_(functions) {}

  static Result<std::unique_ptr<CublasLt>> start() {
    HEARTH_TRY(enter_cuda_device());
    HEARTH_TRY_ASSIGN(const Functions functions, load_functions());
    std::unique_ptr<CublasLt> made(new CublasLt(functions));
    HEARTH_TRY(made->check(functions.create(&made->handle_), "cublasLtCreate"));
    return Result<std::unique_ptr<CublasLt>>(std::move(made));
  }

  Status multiply(const CublasLtProduct& p, const Plan& plan, cublasLtMatmulDesc_t operation,
                  std::span<std::byte> workspace, void* stream) {
    const float alpha = 1, beta = p.added ? 1 : 0;
    const void* const c = p.added ? p.added.data : p.out.data;
    return check(f_.matmul(handle_, operation, &alpha, p.weight.data, plan.weight, p.x.data, plan.x, &beta, c,
                           plan.added, p.out.data, plan.out, &plan.algorithm, workspace.data(), workspace.size(),
                           static_cast<cudaStream_t>(stream)),
                 "cublasLtMatmul");
  }

  template <class T>
  Status set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, T value) {
    return check(f_.desc_set(operation, attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  }

  Status describe(const PlanKey& key, const CublasLtProduct& product, cublasLtMatmulDesc_t& operation) {
    HEARTH_TRY(check(f_.desc_create(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate"));
    HEARTH_TRY(set(operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
    if (!key.fp8) return {};
    HEARTH_TRY(set(operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1}));
    HEARTH_TRY(set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F));
    HEARTH_TRY(set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F));
    HEARTH_TRY(set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, product.weight_scale));
    return set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, product.x_scale);
  }

  static Side side(const ConstTensorView& view) { return {view.row_stride, view ? alignment_of(view.data) : 0}; }

  Status check(cublasStatus_t status, const char* what) const {
    if (status == CUBLAS_STATUS_SUCCESS) return {};
    const char* const name = f_.status_name(status);
    switch (status) {
      case CUBLAS_STATUS_ALLOC_FAILED: return resource_exhausted("{}: {}", what, name);
      case CUBLAS_STATUS_NOT_INITIALIZED: return unavailable("{}: {}", what, name);
      case CUBLAS_STATUS_NOT_SUPPORTED:
      case CUBLAS_STATUS_ARCH_MISMATCH: return unsupported("{}: {}", what, name);
      case CUBLAS_STATUS_EXECUTION_FAILED: return Error{ErrorCode::kDeviceLost, fmt::format("{}: {}", what, name)};
      default: return internal_error("{}: {}", what, name);
    }
  }

  Result<const Plan*> find(const PlanKey& key, const CublasLtProduct& product) {
    const std::lock_guard lock(mutex_);
    if (const auto found = plans_.find(key); found != plans_.end()) return &found->second;
    // Descriptors of a plan that fails stay with the process: that is a shape that no model has.
    Plan plan;
    HEARTH_TRY(
        make(key, product, plan).with_context(fmt::format("linear [{}, {}] x [{}, {}]", key.m, key.k, key.n, key.k)));
    return &plans_.emplace(key, plan).first->second;
  }

  Status layout(cublasLtMatrixLayout_t& to, cudaDataType_t type, int64_t rows, int64_t cols, int64_t stride) {
    return check(
        f_.layout_create(&to, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), std::max(stride, rows)),
        "cublasLtMatrixLayoutCreate");
  }

  Status make(const PlanKey& key, const CublasLtProduct& product, Plan& plan) {
    const cudaDataType_t out_type = key.out_f32 ? CUDA_R_32F : CUDA_R_16BF;
    const cudaDataType_t in_type = key.fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    HEARTH_TRY(describe(key, product, plan.operation));
    HEARTH_TRY(layout(plan.weight, in_type, key.k, key.n, key.weight.stride));
    HEARTH_TRY(layout(plan.x, in_type, key.k, key.m, key.x.stride));
    HEARTH_TRY(layout(plan.out, out_type, key.n, key.m, key.out.stride));
    HEARTH_TRY(layout(plan.added, out_type, key.n, key.m, key.added.alignment ? key.added.stride : key.out.stride));

    cublasLtMatmulPreference_t preference = nullptr;
    HEARTH_TRY(check(f_.preference_create(&preference), "cublasLtMatmulPreferenceCreate"));
    const Status status = choose(key, plan, preference);
    static_cast<void>(f_.preference_destroy(preference));
    return status;
  }

  Status choose(const PlanKey& key, Plan& plan, cublasLtMatmulPreference_t preference) {
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      return check(f_.preference_set(preference, attribute, &value, sizeof value), "cublasLtMatmulPreference");
    };
    const auto bytes = [](const Side& side) { return static_cast<uint32_t>(side.alignment); };
    HEARTH_TRY(set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes)));
    HEARTH_TRY(
        set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)));
    HEARTH_TRY(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes(key.weight)));
    HEARTH_TRY(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes(key.x)));
    HEARTH_TRY(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, bytes(key.added.alignment ? key.added : key.out)));
    HEARTH_TRY(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, bytes(key.out)));
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    HEARTH_TRY(check(f_.heuristic(handle_, plan.operation, plan.weight, plan.x, plan.added, plan.out, preference, 1,
                                  &result, &found),
                     "cublasLtMatmulAlgoGetHeuristic"));
    if (found == 0) return unsupported("cuBLASLt has no algorithm");
    plan.algorithm = result.algo;
    plan.workspace_bytes = result.workspaceSize;
    return {};
  }

  const Functions f_;
  cublasLtHandle_t handle_ = nullptr;
  std::mutex mutex_;
  std::map<PlanKey, Plan> plans_;
};

}  // namespace

Status prepare_cublaslt() {
  HEARTH_TRY_ASSIGN(const CublasLt* lt, CublasLt::instance());
  static_cast<void>(lt);
  return {};
}

int64_t linear_cublaslt_workspace_bytes(int64_t, int64_t, int64_t, int) { return kWorkspaceBytes; }

Status linear_cublaslt(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate_on_device(args));
  if (args.x.dtype != DType::kBf16 || args.weight->codes.dtype != DType::kBf16)
    return unsupported("linear: x is {} and the weight {}, this op has bf16 for both", dtype_name(args.x.dtype),
                       dtype_name(args.weight->codes.dtype));
  if (args.x.shape[0] == 0 || args.weight->n == 0) return {};
  if (args.weight->k == 0) return linear_sm90(args, exec);
  HEARTH_TRY_ASSIGN(CublasLt* const lt, CublasLt::instance());
  CublasLtProduct product{.x = args.x, .weight = args.weight->codes, .added = args.residual, .out = args.out};
  if (args.weight->bias) {
    // The library's own bias is of out's type and f32 ours: the bias goes into out first, rounded to its type.
    HEARTH_TRY(linear_fill_cuda(args, exec));
    product.added = args.out;
  }
  return lt->run(product, exec.workspace, exec.stream);
}

Status multiply_cublaslt(const CublasLtProduct& product, std::span<std::byte> workspace, void* stream) {
  HEARTH_TRY_ASSIGN(CublasLt* const lt, CublasLt::instance());
  return lt->run(product, workspace, stream);
}

}  // namespace hearth
