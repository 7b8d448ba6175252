// What collectives under way read and write. See stand_in.hpp.

#include "stand_in.hpp"

#include <map>

namespace stand_in {

struct Pending {
  std::mutex mutex;
  std::map<uint64_t, PendingOperation> operations;
  uint64_t added = 0;
};

static Pending& pending() {
  static Pending& state = *new Pending;
  return state;
}

uint64_t add_pending(PendingOperation operation) {
  std::scoped_lock lock(pending().mutex);
  pending().operations.emplace(++pending().added, std::move(operation));
  return pending().added;
}

void remove_pending(uint64_t identifier) {
  std::scoped_lock lock(pending().mutex);
  pending().operations.erase(identifier);
}

bool overlap(const std::vector<Region>& left, const std::vector<Region>& right) {
  for (const Region& one : left) {
    for (const Region& other : right) {
      if (one.allocation == other.allocation && one.begin < other.end && other.begin < one.end) return true;
    }
  }
  return false;
}

template <class Matches>
static std::optional<std::string> find_pending(Matches matches) {
  std::scoped_lock lock(pending().mutex);
  for (const auto& [identifier, operation] : pending().operations) {
    if (matches(operation)) return operation.name;
  }
  return std::nullopt;
}

bool pending_writes(const std::vector<Region>& regions) {
  const auto matches = [&](const PendingOperation& operation) { return overlap(operation.writes, regions); };
  return find_pending(matches).has_value();
}

bool pending_uses(const std::vector<Region>& regions) {
  const auto matches = [&](const PendingOperation& operation) { return overlap(operation.reads, regions); };
  return pending_writes(regions) || find_pending(matches).has_value();
}

std::optional<std::string> pending_user_of_addresses(const void* start, size_t bytes) {
  const std::vector<Region> addresses = {addresses_of(start, bytes)};
  return find_pending([&](const PendingOperation& operation) { return overlap(operation.addresses, addresses); });
}

}  // namespace stand_in
