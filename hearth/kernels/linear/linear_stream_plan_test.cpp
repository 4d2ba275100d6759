// SPDX-License-Identifier: Apache-2.0
// How the blocks of linear_stream_sm90 share out W. Host code.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "hearth/kernels/linear/linear_stream_sm90.h"

namespace hearth::sm90 {
namespace {

NarrowProduct product_of(std::vector<int> rows, int row_bytes) {
  NarrowProduct product{};
  product.parts = static_cast<int>(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) product.part[i].n = rows[i];
  product.row_bytes = row_bytes;
  return product;
}

TEST(LinearStreamPlan, EveryUnitHasOneBlockAndATileWaitsForLowerBlocksOnly) {
  struct Case {
    std::vector<int> rows;
    int row_bytes;
  };
  const Case cases[] = {{{28672}, 4096},  {{4096}, 14336}, {{4096, 1024, 1024}, 4096},
                        {{1}, 16},        {{129, 3}, 144}, {{384}, 384},
                        {{128256}, 8192}, {{1000}, 37888}, {{128}, 128}};
  for (const Case& one : cases)
    for (const int multiprocessors : {1, 2, 7, 114, 132, 1000}) {
      const StreamPlan plan = plan_linear_stream(product_of(one.rows, one.row_bytes), multiprocessors);
      SCOPED_TRACE(fmt::format("{} tiles of {} chunks on {}", plan.tiles, plan.chunks, multiprocessors));
      ASSERT_GE(plan.blocks, 1);
      ASSERT_LE(plan.blocks, std::min(multiprocessors, kStreamMostBlocks));
      std::vector<int> blocks_of_unit(static_cast<size_t>(plan.units()), -1);
      int64_t least = plan.units(), most = 0;
      for (int block = 0; block < plan.blocks; ++block) {
        const int64_t begin = plan.begin(block), end = plan.begin(block + 1);
        least = std::min(least, end - begin), most = std::max(most, end - begin);
        int unfinished = 0;
        int previous = plan.tiles;
        for (int64_t at = end; at > begin;) {
          const StreamSegment segment = last_segment(begin, at, plan.chunks);
          ASSERT_LT(segment.tile, previous) << "from the highest tile down";
          ASSERT_LT(segment.first, segment.last);
          ASSERT_LE(segment.last, plan.chunks);
          previous = segment.tile;
          // Room for one tile's partial sums a block, written before the block waits for anybody.
          if (segment.last < plan.chunks) {
            ++unfinished;
            ASSERT_EQ(at, end) << "the first of the block's segments";
          }
          for (int chunk = segment.first; chunk < segment.last; ++chunk) {
            int& owner = blocks_of_unit[static_cast<size_t>(int64_t{segment.tile} * plan.chunks + chunk)];
            ASSERT_EQ(owner, -1);
            owner = block;
          }
          at -= segment.last - segment.first;
        }
        ASSERT_LE(unfinished, 1);
      }
      EXPECT_LE(most - least, 1);
      for (size_t unit = 0; unit < blocks_of_unit.size(); ++unit) {
        ASSERT_NE(blocks_of_unit[unit], -1);
        if (unit > 0) {
          ASSERT_GE(blocks_of_unit[unit], blocks_of_unit[unit - 1]);
        }
      }
    }
}

}  // namespace
}  // namespace hearth::sm90
