// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/linear/linear_bench_onednn.h"

#ifdef HEARTH_HAVE_ONEDNN
#include <oneapi/dnnl/dnnl.hpp>
#endif

namespace hearth {

#ifdef HEARTH_HAVE_ONEDNN
namespace {

class Matmul final : public OneDnnMatmul {
 public:
  explicit Matmul(const OneDnnArgs& args) : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using dnnl::memory;
    using Tag = memory::format_tag;
    const auto type = args.type == DType::kBf16 ? memory::data_type::bf16 : memory::data_type::f32;
    const memory::desc x_desc({args.m, args.k}, type, Tag::ab), stored({args.k, args.n}, type, Tag::ba);
    const memory::desc out_desc({args.m, args.n}, memory::data_type::f32, Tag::ab);
    const memory::desc wanted = args.own_layout ? memory::desc({args.k, args.n}, type, Tag::any) : stored;
    const dnnl::matmul::primitive_desc desc({x_desc, wanted, out_desc}, engine_);
    name_ = desc.impl_info_str();
    x_ = memory(x_desc, engine_, const_cast<void*>(args.x));
    out_ = memory(out_desc, engine_, args.out);
    weight_ = memory(stored, engine_, const_cast<void*>(args.weight));
    if (desc.weights_desc() != stored) {
      memory reordered(desc.weights_desc(), engine_);
      dnnl::reorder(weight_, reordered).execute(stream_, weight_, reordered);
      stream_.wait();
      weight_ = reordered;
    }
    matmul_ = dnnl::matmul(desc);
  }
  void run() override {
    matmul_.execute(stream_, {{DNNL_ARG_SRC, x_}, {DNNL_ARG_WEIGHTS, weight_}, {DNNL_ARG_DST, out_}});
    stream_.wait();
  }
  const char* implementation() const override { return name_.c_str(); }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::memory x_, weight_, out_;
  dnnl::matmul matmul_;
  std::string name_;
};

}  // namespace

Result<std::unique_ptr<OneDnnMatmul>> make_onednn_matmul(const OneDnnArgs& args) {
  try {
    // Takes effect before the first primitive only; later calls change nothing.
    static const auto capped = dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_vnni);
    (void)capped;
    return std::unique_ptr<OneDnnMatmul>(std::make_unique<Matmul>(args));
  } catch (const dnnl::error& error) {
    return unavailable("oneDNN: {}", error.what());
  }
}
#else
Result<std::unique_ptr<OneDnnMatmul>> make_onednn_matmul(const OneDnnArgs&) {
  return unavailable("oneDNN: the benchmark was built without it");
}
#endif

}  // namespace hearth
