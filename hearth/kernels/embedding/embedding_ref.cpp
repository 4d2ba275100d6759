// SPDX-License-Identifier: Apache-2.0
// embedding as it is written down: copies rows, element by element. One thread.
#include "hearth/kernels/embedding/embedding.h"

namespace hearth {
namespace {

template <class W, class T>
void copy_rows(const EmbeddingArgs& args) {
  for (size_t t = 0; t < args.tokens.size(); ++t) {
    const W* from = args.table.row<W>(args.sampled.id_of(args.tokens[t]));
    T* to = args.out.row<T>(static_cast<int64_t>(t));
    for (int64_t i = 0; i < args.out.cols(); ++i) to[i] = from_float<T>(to_float(from[i]));
  }
}

template <class W>
void copy_rows_of(const EmbeddingArgs& args) {
  args.out.dtype == DType::kF32 ? copy_rows<W, float>(args) : copy_rows<W, bf16>(args);
}

}  // namespace

Status embedding_ref(const EmbeddingArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  switch (args.table.dtype) {
    case DType::kF32: copy_rows_of<float>(args); break;
    case DType::kF16: copy_rows_of<f16>(args); break;
    default: copy_rows_of<bf16>(args); break;
  }
  return {};
}

}  // namespace hearth
