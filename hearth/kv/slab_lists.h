// SPDX-License-Identifier: Apache-2.0
// Lists of slabs, linked by index: every operation is O(1), or a scan of a bitmap of a slab's columns.
// One owning thread.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace hearth {

inline constexpr int32_t kNoSlab = -1;

// The links of all slabs for one kind of list. A slab is in at most one list of the kind.
struct SlabLinks {
  struct Link {
    int32_t previous = kNoSlab, next = kNoSlab;
  };
  std::vector<Link> of;  // by slab
  Link& operator[](int32_t slab) { return of[static_cast<size_t>(slab)]; }
};

// From the oldest to the newest.
struct SlabList {
  int32_t first = kNoSlab, last = kNoSlab;

  void append(SlabLinks& links, int32_t slab) {
    links[slab] = {.previous = last, .next = kNoSlab};
    (last == kNoSlab ? first : links[last].next) = slab;
    last = slab;
  }
  void prepend(SlabLinks& links, int32_t slab) {
    links[slab] = {.previous = kNoSlab, .next = first};
    (first == kNoSlab ? last : links[first].previous) = slab;
    first = slab;
  }
  void remove(SlabLinks& links, int32_t slab) {
    const auto [previous, next] = links[slab];
    (previous == kNoSlab ? first : links[previous].next) = next;
    (next == kNoSlab ? last : links[next].previous) = previous;
  }
};

// Slabs by a number of their columns.
class SlabBuckets {
 public:
  explicit SlabBuckets(int64_t columns) : lists_(static_cast<size_t>(columns) + 1), used_(lists_.size() / 64 + 1) {}

  void add(SlabLinks& links, int32_t slab, int64_t number) {
    lists_[static_cast<size_t>(number)].append(links, slab);
    used_[static_cast<size_t>(number) / 64] |= uint64_t{1} << (number % 64);
  }
  void remove(SlabLinks& links, int32_t slab, int64_t number) {
    SlabList& list = lists_[static_cast<size_t>(number)];
    list.remove(links, slab);
    if (list.first == kNoSlab) used_[static_cast<size_t>(number) / 64] &= ~(uint64_t{1} << (number % 64));
  }
  // A slab of the smallest number that is at least `least`: the one that has had it longest.
  int32_t at_least(int64_t least) const {
    if (least >= static_cast<int64_t>(lists_.size())) return kNoSlab;
    auto word = static_cast<size_t>(least) / 64;
    uint64_t bits = used_[word] & (~uint64_t{0} << (least % 64));
    while (bits == 0) {
      if (++word == used_.size()) return kNoSlab;
      bits = used_[word];
    }
    return lists_[word * 64 + static_cast<size_t>(std::countr_zero(bits))].first;
  }
  // A slab of the largest number.
  int32_t largest() const {
    for (size_t word = used_.size(); word-- > 0;)
      if (used_[word] != 0) return lists_[word * 64 + static_cast<size_t>(std::bit_width(used_[word])) - 1].first;
    return kNoSlab;
  }

 private:
  std::vector<SlabList> lists_;  // by number
  std::vector<uint64_t> used_;   // bit n: lists_[n] is not empty
};

}  // namespace hearth
