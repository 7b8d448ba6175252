// What the tests of the stand-in share: ranks that are forked processes, and checks in them.

#pragma once

#include "stand_in.hpp"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>

#include <fcntl.h>
#include <unistd.h>

using Clock = std::chrono::steady_clock;

// What the processes of one test share besides the stand-in.
struct Shared {
  std::atomic<int> arrived;
  std::atomic<bool> has_id[4];
  ncclUniqueId id[4];
  std::atomic<int> process[4];
};

void check(bool is_right, const char* what, int line);
#define CHECK(condition) check(static_cast<bool>(condition), #condition, __LINE__)

double seconds_since(Clock::time_point start);
void pause_for(int milliseconds);

struct Rank {
  int rank, ranks;
  Shared& shared;
  std::string directory;

  // A barrier apart from the stand-in, for tests that need an order of events.
  void meet() {
    const int goal = (shared.arrived.fetch_add(1) / ranks + 1) * ranks;
    while (shared.arrived < goal) pause_for(1);
  }
  ncclUniqueId unique_id(int number = 0) {
    if (rank == 0) {
      CHECK(ncclGetUniqueId(&shared.id[number]) == ncclSuccess);
      shared.has_id[number] = true;
    }
    while (!shared.has_id[number]) pause_for(1);
    return shared.id[number];
  }
  ncclComm_t communicator(int number = 0) {
    ncclComm_t comm = nullptr;
    CHECK(ncclCommInitRank(&comm, ranks, unique_id(number), rank) == ncclSuccess);
    return comm;
  }
  std::string file(const std::string& name) const { return directory + "/" + name + "." + std::to_string(rank); }
  // What this process says on stderr from now on goes to a file.
  void catch_stderr() {
    const int target = open(file("stderr").c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
    dup2(target, STDERR_FILENO);
    close(target);
  }
  std::string read(const std::string& name) const {
    std::ifstream stream(file(name));
    return {std::istreambuf_iterator<char>(stream), {}};
  }
};

using Environment = std::vector<std::pair<std::string, std::string>>;
using Body = std::function<void(Rank&)>;
// Runs `body` in processes as ranks. Rank `killed` is expected to die of SIGKILL.
void test(const char* name, int ranks, const Body& body, const Environment& environment = {}, int killed = -1);

// Collectives that leave time to look at what is going on.
inline const Environment slow = {{"ZEROFOLD_STAND_IN_DELAY_US", "200000"}};

bool is_empty_now(const std::string& directory);
CUstream new_stream();
CUevent new_event();
ncclResult_t async_error(ncclComm_t comm);
bool becomes(const std::function<bool()>& condition, double seconds);

// Reads and writes that race with the stand-in on purpose.
#define RACES_ON_PURPOSE __attribute__((noinline, no_sanitize("thread")))
float peek(const volatile float* value);
void poke(volatile float* value, float written);

// The tests, by their subject.
void test_results();
void test_order();
void test_errors();
void test_races();
void test_memory();
void test_settings();
