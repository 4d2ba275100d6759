// SPDX-License-Identifier: Apache-2.0
#include "hearth/tensor/kv_layout.h"

#include <gtest/gtest.h>

#include <vector>

namespace hearth {
namespace {

// Every (layer, K/V, head, token) owns its bytes: no two overlap, all lie within the block.
TEST(KvLayout, ElementsAndScalesNeverOverlap) {
  for (KvFormatId format : {KvFormatId::kF32, KvFormatId::kBf16, KvFormatId::kFp8, KvFormatId::kInt4,
                            KvFormatId::kInt4Fireq, KvFormatId::kInt4Saw}) {
    for (int64_t tokens : {1, 5, 16}) {
      const KvLayout layout = *KvLayout::make(format, 3, 2, 64, tokens);
      std::vector<int> owners(layout.block_bytes());
      for (int64_t layer = 0; layer < 3; ++layer)
        for (int64_t v = 0; v < 2; ++v)
          for (int64_t head = 0; head < 2; ++head)
            for (int64_t t = 0; t < tokens; ++t) {
              const int64_t start = layer * layout.layer_stride_bytes + v * layout.v_offset_bytes;
              const int64_t data = start + t * layout.token_stride_bytes + head * layout.head_stride_bytes;
              for (int64_t b = 0; b < layout.token_stride_bytes; ++b) ++owners.at(data + b);
              const int64_t scale = start + layout.scale_offset_bytes + t * layout.scale_token_stride_bytes +
                                    head * layout.scale_head_stride_bytes;
              for (int64_t b = 0; b < layout.scale_bytes; ++b) ++owners.at(scale + b);
            }
      for (int count : owners) EXPECT_LE(count, 1) << kv_format_name(format);
    }
  }
}

TEST(KvLayout, CostOfATokenIsWhatTheFormatSays) {
  // Llama-3-8B: 32 layers, 8 kv heads of 128: 131,072 bytes in bf16, a quarter plus 2 bytes a head in int4.
  EXPECT_EQ(KvLayout::make(KvFormatId::kBf16, 32, 8, 128, 16)->bytes_per_token(), 131072);
  EXPECT_EQ(KvLayout::make(KvFormatId::kInt4, 32, 8, 128, 16)->bytes_per_token(), 32768 + 32 * 2 * 8 * 2);
  EXPECT_EQ(KvLayout::make(KvFormatId::kInt4Saw, 32, 8, 128, 16)->bytes_per_token(), 32768 + 32 * 2 * 8 * 4);
  EXPECT_EQ(KvLayout::make(KvFormatId::kFp8, 32, 8, 128, 16)->bytes_per_token(), 65536);
}

// The offsets of docs/formats/kv.md, computed by hand: 16 tokens of 2 heads of 80 channels.
TEST(KvLayout, PlacesCodesAndScales) {
  const KvLayout saw = *KvLayout::make(KvFormatId::kInt4Saw, 3, 2, 64, 16);
  EXPECT_EQ(saw.token_stride_bytes, 32);
  EXPECT_EQ(saw.head_stride_bytes, 512);
  EXPECT_EQ(saw.scale_offset_bytes, 1024);
  EXPECT_EQ(saw.scale_head_stride_bytes, 64);
  EXPECT_EQ(saw.v_offset_bytes, 1024 + 128);
  const KvLayout int4 = *KvLayout::make(KvFormatId::kInt4, 3, 2, 80, 5);
  EXPECT_EQ(int4.token_stride_bytes, 40);
  EXPECT_EQ(int4.head_stride_bytes, 256);  // 200 rounded up to 64
  EXPECT_EQ(int4.scale_offset_bytes, 512);
  EXPECT_EQ(int4.scale_bytes, 2);
  EXPECT_EQ(int4.scale_head_stride_bytes, 10);
  EXPECT_EQ(int4.v_offset_bytes, 512 + 64);
  EXPECT_EQ(int4.layer_stride_bytes, 2 * 576);
  EXPECT_EQ(int4.block_bytes(), 3 * 2 * 576);
  const KvLayout fp8 = *KvLayout::make(KvFormatId::kFp8, 1, 2, 80, 16);
  EXPECT_EQ(fp8.head_stride_bytes, 1280);
  EXPECT_EQ(fp8.scale_bytes, 0);
  EXPECT_EQ(fp8.v_offset_bytes, 2560);
}

TEST(KvLayout, RefusesWhatItCannotStore) {
  EXPECT_EQ(KvLayout::make(KvFormatId::kInt4, 1, 1, 63, 16).error().message,
            "KV format int4: head dim 63 does not fill whole bytes");
  EXPECT_FALSE(KvLayout::make(KvFormatId::kInt4Fireq, 1, 1, 65, 16));
  EXPECT_EQ(KvLayout::make(KvFormatId::kInt4Saw, 1, 1, 96, 16).error().message,
            "KV format int4-saw: head dim 96 is not a power of two");
  EXPECT_EQ(KvLayout::make(KvFormatId::kFp8, 1, 1, 2048, 16).error().message,
            "KV format fp8: head dim 2048 is above 1024");
  EXPECT_FALSE(KvLayout::make(KvFormatId::kF32, 0, 1, 64, 16));
}

TEST(KvLayout, NamesReadBack) {
  EXPECT_EQ(kv_format_from_name("int4-saw"), KvFormatId::kInt4Saw);
  EXPECT_EQ(kv_format_from_name("fp16"), std::nullopt);
  EXPECT_EQ(kv_format_name(KvFormatId::kFp8), "fp8");
}

}  // namespace
}  // namespace hearth
