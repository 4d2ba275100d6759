// SPDX-License-Identifier: Apache-2.0
// What each model has had of a device, by weight, so that the one that had least can come first.
#pragma once

#include <algorithm>
#include <limits>
#include <span>

namespace hearth {

// Start-time fair queuing (Goyal, Vin, Cheng, SIGCOMM 1996) with models for flows and steps for packets: while two
// models have work, what they get differs in proportion to their weights by no more than a step of each.
struct FairShare {
  double service = 0;  // time used / weight; microseconds
  bool busy = false;   // had work at the last look

  void charge(double us, double weight) { service += us / weight; }

  // At each look, for each model. Who has work again after having had none begins where the least served of the busy
  // ones is, or the most served of all where nobody is busy: being idle saves nothing up.
  void look(bool has_work, std::span<const FairShare* const> all) {
    if (has_work && !busy) {
      double least = std::numeric_limits<double>::infinity(), most = 0;
      for (const FairShare* const other : all) {
        most = std::max(most, other->service);
        if (other != this && other->busy) least = std::min(least, other->service);
      }
      service = std::max(service, least < std::numeric_limits<double>::infinity() ? least : most);
    }
    busy = has_work;
  }
};

}  // namespace hearth
