// What the environment says, and the log. See stand_in.hpp.

#include "stand_in.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

namespace stand_in {

static std::string environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

static void read_failure(Settings& settings) {
  const std::string failure = environment("ZEROFOLD_STAND_IN_FAIL", "");
  const auto number_after = [&](const std::string& prefix) -> uint64_t {
    return failure.starts_with(prefix) ? std::stoull(failure.substr(prefix.size())) : 0;
  };
  settings.fails_init = failure == "init";
  settings.has_no_device = failure == "no-device";
  settings.failing_collective = number_after("async:");
  settings.hanging_collective = number_after("hang:");
}

static Settings* read_settings() {
  auto* read = new Settings;
  read->directory = environment("ZEROFOLD_STAND_IN_DIR", "/dev/shm");
  read->log_path = environment("ZEROFOLD_STAND_IN_LOG", "");
  read->delay = std::chrono::microseconds(std::stoll(environment("ZEROFOLD_STAND_IN_DELAY_US", "0")));
  read->devices = std::stoi(environment("ZEROFOLD_STAND_IN_DEVICES", "8"));
  read->memory = std::stoull(environment("ZEROFOLD_STAND_IN_MEMORY", "17179869184"));
  const std::string capability = environment("ZEROFOLD_STAND_IN_CAPABILITY", "9.0");
  std::sscanf(capability.c_str(), "%d.%d", &read->capability_major, &read->capability_minor);
  read_failure(*read);
  if (read->has_no_device) read->devices = 0;
  return read;
}

// This and every other state of the process is never destroyed: the threads of streams may outlive main().
const Settings& settings() {
  static const Settings& read = *read_settings();
  return read;
}

static int open_log() {
  const std::string& path = settings().log_path;
  return path.empty() ? -1 : open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

void log(const char* format, ...) {
  static const int file = open_log();
  if (file < 0) return;
  char line[256];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  length = std::min<int>(length, sizeof line - 2);
  line[length] = '\n';
  if (write(file, line, length + 1) < 0) complain(std::string("the log cannot be written: ") + strerror(errno));
}

void complain(const std::string& text) {
  const std::string line = "stand-in: " + text + "\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
}

std::mutex& call_order() {
  static std::mutex& mutex = *new std::mutex;
  return mutex;
}

}  // namespace stand_in
