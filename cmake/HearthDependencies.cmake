# SPDX-License-Identifier: Apache-2.0
# The libraries that hearth stands on (docs/decisions/0002-dependencies.md). Header-only where offered:
# the distribution then ships fewer shared objects.
find_package(Threads REQUIRED)
find_package(fmt 9 REQUIRED)
find_package(spdlog 1.10 REQUIRED)
find_package(GTest REQUIRED)
