#include "terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string_view>

namespace pmkvq::cli {
namespace {

CancelFlag g_interrupted{false};
CancelFlag g_terminated{false};

// The terminal's state, for a handler that must leave it as it was.
volatile std::sig_atomic_t g_status_line_active = 0;
std::atomic<int64_t> g_first_interrupt_ms{0};

int64_t NowMs() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1000000;
}

// A launcher and the terminal may both send the signal of a single Ctrl-C, so a second one counts
// from a moment later. Calls async-signal-safe functions only.
extern "C" void HandleInterrupt(int signal) {
  constexpr int64_t kSameKeyMs = 300;
  if (signal == SIGTERM) g_terminated = true;
  const int64_t now_ms = NowMs();
  if (!g_interrupted.exchange(true)) {
    g_first_interrupt_ms = now_ms;
    return;
  }
  if (now_ms - g_first_interrupt_ms < kSameKeyMs) return;
  constexpr char kResetScrolling[] = "\0337\033[r\0338\n";
  if (g_status_line_active != 0) {
    // Where even this fails there is nothing left to do.
    [[maybe_unused]] const ssize_t written =
        write(STDERR_FILENO, kResetScrolling, sizeof(kResetScrolling) - 1);
  }
  _exit(130);
}

bool StderrIsTerminal() { return isatty(STDERR_FILENO) == 1; }

// Cursor movement and the like; TERM=dumb says that control sequences would show as text.
bool TerminalTakesControls() {
  const char* const term = std::getenv("TERM");
  return term != nullptr && *term != '\0' && std::string_view(term) != "dumb";
}

std::string FormatSeconds(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

}  // namespace

const CancelFlag* InterruptFlag() { return &g_interrupted; }

void ClearInterrupt() {
  if (!g_terminated) g_interrupted = false;
}

bool TerminationRequested() { return IsCancelled(&g_terminated); }

void InstallInterruptHandler() {
  struct sigaction action = {};
  action.sa_handler = HandleInterrupt;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // A closed pipe shows as a failed write.
}

void ExitIfInterrupted(const char* where) { ThrowIfCancelled(&g_interrupted, where); }

void StderrLog::Info(const std::string& message) { PrintError(message); }
void StderrLog::Warning(const std::string& message) { PrintError("warning: " + message); }

// Where an error ends the work, its message gets a line of its own.
ProgressBar::~ProgressBar() {
  if (line_is_open_) std::fputc('\n', stderr);
}

void ProgressBar::Begin(const std::string& task, int64_t total, int64_t done) {
  task_ = task;
  note_.clear();
  total_ = total;
  done_ = resumed_ = done;
  start_ = last_draw_ = Clock::now();
  Draw(false);
}

void ProgressBar::Advance(int64_t units) {
  done_ += units;
  const auto interval =
      StderrIsTerminal() ? std::chrono::milliseconds(100) : std::chrono::milliseconds(10000);
  if (Clock::now() - last_draw_ >= interval) Draw(false);
}

void ProgressBar::End() { Draw(true); }

void ProgressBar::Draw(bool last) {
  last_draw_ = Clock::now();
  const double elapsed = std::chrono::duration<double>(last_draw_ - start_).count();
  const auto fresh = static_cast<double>(done_ - resumed_);
  const double rate = elapsed > 0 ? fresh / elapsed : 0;
  std::string line = fmt::format("{:<12}", task_);
  if (StderrIsTerminal()) {
    constexpr int64_t kCells = 24;
    const int64_t filled = total_ > 0 ? kCells * done_ / total_ : kCells;
    line += fmt::format(" [{}{}]", std::string(static_cast<size_t>(filled), '#'),
                        std::string(static_cast<size_t>(kCells - filled), '-'));
  }
  line += fmt::format(" {}/{}", done_, total_);
  if (resumed_ > 0) line += fmt::format(" ({} resumed)", resumed_);
  if (rate > 0) line += fmt::format("  {:.3g}/s", rate);
  if (last) {
    line += fmt::format("  {} in all", FormatSeconds(elapsed));
  } else if (rate > 0) {
    line += fmt::format("  {} left", FormatSeconds(static_cast<double>(total_ - done_) / rate));
  }
  if (!note_.empty()) line += "  " + note_;
  if (StderrIsTerminal()) {
    std::fprintf(stderr, "\r%s\033[K%s", line.c_str(), last ? "\n" : "");
    line_is_open_ = !last;
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

StatusLine::StatusLine() {
  winsize size = {};
  if (!StdoutIsTerminal() || !StderrIsTerminal() || !TerminalTakesControls()) return;
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row < 4) return;
  active_ = true;
  rows_ = size.ws_row;
  columns_ = size.ws_col;
  std::fflush(stdout);
  // Make room for the last row, then let only the rows above it scroll.
  std::fprintf(stderr, "\n\0337\033[1;%dr\0338\033[1A", rows_ - 1);
  std::fflush(stderr);
  g_status_line_active = 1;
}

StatusLine::~StatusLine() {
  if (!active_) return;
  std::fflush(stdout);
  std::fprintf(stderr, "\0337\033[%d;1H\033[K\033[r\0338", rows_);
  std::fflush(stderr);
  g_status_line_active = 0;
}

void StatusLine::Update(const std::string& text, bool force) {
  if (!active_) return;
  const auto now = std::chrono::steady_clock::now();
  if (!force && now - last_draw_ < std::chrono::milliseconds(100)) return;
  last_draw_ = now;
  std::fflush(stdout);
  const std::string shown = text.substr(0, static_cast<size_t>(std::max(columns_ - 1, 1)));
  std::fprintf(stderr, "\0337\033[%d;1H\033[7m%s\033[0m\033[K\0338", rows_, shown.c_str());
  std::fflush(stderr);
}

bool StdinIsTerminal() { return isatty(STDIN_FILENO) == 1; }
bool StdoutIsTerminal() { return isatty(STDOUT_FILENO) == 1; }

bool StdoutTakesStyle() {
  const char* const no_color = std::getenv("NO_COLOR");
  return StdoutIsTerminal() && (no_color == nullptr || *no_color == '\0') &&
         TerminalTakesControls();
}

void Print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw IoError("stdout", "cannot write to standard output");
  }
}

void PrintError(const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }

}  // namespace pmkvq::cli
