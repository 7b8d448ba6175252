// Checks the stand-in for NCCL and the CUDA driver API by itself: processes are forked and call it as ranks.
//
//   c++ -std=c++20 -O1 -g -Wall -Wextra -I.. *.cpp ../*.cpp -o /tmp/self_test -lpthread
//   /tmp/self_test

#include "self_test.hpp"

#include <filesystem>

#include <sys/mman.h>
#include <sys/wait.h>

namespace {

int failures = 0;  // of this process
int failed_tests = 0;

[[noreturn]] void be_rank(Rank rank, const Environment& environment, const Body& body) {
  alarm(120);
  setenv("ZEROFOLD_STAND_IN_DIR", (rank.directory + "/comms").c_str(), 1);
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
  if (std::getenv("TEST_WANTS_LOG")) setenv("ZEROFOLD_STAND_IN_LOG", rank.file("log").c_str(), 1);
  rank.shared.process[rank.rank] = getpid();
  body(rank);
  std::fflush(stdout);
  std::exit(failures ? 1 : 0);
}

bool ended_well(int process, int expected_signal) {
  int status = 0;
  waitpid(process, &status, 0);
  if (WIFSIGNALED(status)) return WTERMSIG(status) == expected_signal;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool run_ranks(int ranks, const Body& body, const Environment& environment, int killed) {
  char pattern[] = "/tmp/gpu_stand_in.XXXXXX";
  const std::string directory = mkdtemp(pattern);
  std::filesystem::create_directory(directory + "/comms");
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* shared = new (memory) Shared{};
  std::vector<int> processes;
  for (int rank = 0; rank < ranks; ++rank) {
    const int process = fork();
    if (process == 0) be_rank({rank, ranks, *shared, directory}, environment, body);
    processes.push_back(process);
  }
  // The killed one last: the others must see the end of a process that nobody has waited for.
  bool is_well = true;
  for (int rank = 0; rank < ranks; ++rank) is_well &= rank == killed || ended_well(processes[rank], 0);
  if (killed >= 0) is_well &= ended_well(processes[killed], SIGKILL);
  if (!is_empty_now(directory + "/comms")) {
    std::printf("    a communicator has left its file behind\n");
    is_well = false;
  }
  for (int rank = 0; !is_well && rank < ranks; ++rank) {
    std::ifstream said(directory + "/stderr." + std::to_string(rank));
    for (std::string line; std::getline(said, line);) std::printf("    rank %d said: %s\n", rank, line.c_str());
  }
  munmap(memory, sizeof(Shared));
  std::filesystem::remove_all(directory);
  return is_well;
}

}  // namespace

void check(bool is_right, const char* what, int line) {
  if (is_right) return;
  ++failures;
  std::printf("    line %d of process %d: not so: %s\n", line, getpid(), what);
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void pause_for(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

bool is_empty_now(const std::string& directory) { return std::filesystem::is_empty(directory); }

void test(const char* name, int ranks, const Body& body, const Environment& environment, int killed) {
  const auto start = Clock::now();
  const bool is_well = run_ranks(ranks, body, environment, killed);
  std::printf("%-4s %s, %d rank%s (%.2f s)\n", is_well ? "ok" : "FAIL", name, ranks, ranks == 1 ? "" : "s",
              seconds_since(start));
  std::fflush(stdout);
  failed_tests += !is_well;
}

CUstream new_stream() {
  CUstream stream = nullptr;
  CHECK(cuStreamCreateWithPriority(&stream, 1, -5) == CUDA_SUCCESS);
  return stream;
}

CUevent new_event() {
  CUevent event = nullptr;
  CHECK(cuEventCreate(&event, 0) == CUDA_SUCCESS);
  return event;
}

ncclResult_t async_error(ncclComm_t comm) {
  ncclResult_t error = ncclInternalError;
  CHECK(ncclCommGetAsyncError(comm, &error) == ncclSuccess);
  return error;
}

bool becomes(const std::function<bool()>& condition, double seconds) {
  const auto start = Clock::now();
  while (!condition()) {
    if (seconds_since(start) > seconds) return false;
    pause_for(2);
  }
  return true;
}

RACES_ON_PURPOSE float peek(const volatile float* value) { return *value; }
RACES_ON_PURPOSE void poke(volatile float* value, float written) { *value = written; }

int main() {
  test_results();
  test_order();
  test_errors();
  test_races();
  test_memory();
  test_settings();
  if (failed_tests) std::printf("%d tests failed\n", failed_tests);
  else std::printf("all tests passed\n");
  return failed_tests ? 1 : 0;
}
