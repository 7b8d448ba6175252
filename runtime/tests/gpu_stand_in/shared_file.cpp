// The file by which the ranks of a communicator speak with each other. See communicator.hpp.

#include "communicator.hpp"

#include <cerrno>
#include <climits>
#include <fstream>
#include <sstream>
#include <utility>

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace stand_in {

constexpr std::chrono::milliseconds look_around_every{20};

std::optional<uint64_t> start_of_process(int process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(name_end + 1));
  std::string state, skipped;
  uint64_t start = 0;
  fields >> state;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  fields >> start;
  if (state == "Z" || state == "X") return std::nullopt;
  return start;
}

SharedFile::SharedFile(std::string path, int ranks) : path_(std::move(path)), ranks_(ranks) {
  bytes_ = sizeof(SharedHeader) + ranks * (sizeof(RankSlot) + 2 * sizeof(Stage));
  const int file = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return;
  if (posix_fallocate(file, 0, static_cast<off_t>(bytes_)) == 0) {
    void* start = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (start != MAP_FAILED) start_ = static_cast<std::byte*>(start);
  }
  close(file);
}

SharedFile::~SharedFile() {
  if (start_) munmap(start_, bytes_);
}

void SharedFile::remove_name() const { unlink(path_.c_str()); }

SharedHeader& SharedFile::header() const { return *reinterpret_cast<SharedHeader*>(start_); }

RankSlot& SharedFile::slot(int rank) const { return reinterpret_cast<RankSlot*>(start_ + sizeof(SharedHeader))[rank]; }

Stage& SharedFile::stage(int rank, uint64_t step) const {
  std::byte* stages = start_ + sizeof(SharedHeader) + ranks_ * sizeof(RankSlot);
  return reinterpret_cast<Stage*>(stages)[2 * rank + static_cast<int>(step % 2)];
}

void SharedFile::tell_of_change() const {
  header().changes.fetch_add(1);
  syscall(SYS_futex, &header().changes, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

bool SharedFile::wait_for_change(uint32_t seen) const {
  const timespec limit{0, std::chrono::nanoseconds(look_around_every).count()};
  const long result = syscall(SYS_futex, &header().changes, FUTEX_WAIT, seen, &limit, nullptr, 0);
  return result == 0 || errno != ETIMEDOUT;
}

}  // namespace stand_in
