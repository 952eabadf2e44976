#include "terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string_view>

#include "pmkvq/base/wrap_text.h"

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

// The last line on stderr is a progress or status line, without a line break behind it.
bool g_line_is_drawn = false;
bool g_is_muted = false;

// The size of the terminal behind stderr; 24 x 80 where it does not say.
winsize StderrSize() {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) {
    size.ws_row = 24;
    size.ws_col = 80;
  }
  return size;
}

// For lines on the terminal behind stderr. The last column stays free: a character in it would move
// the cursor on some terminals.
size_t StderrTextColumns() { return static_cast<size_t>(std::max(StderrSize().ws_col - 1, 1)); }

bool WantsStyle() {
  const char* no_color = std::getenv("NO_COLOR");
  return no_color == nullptr || *no_color == '\0';
}

// Characters of UTF-8: columns, but for wide ones, which no text here has.
int CountColumns(std::string_view text) {
  return static_cast<int>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) >> 6) != 2; }));
}

// `text` in at most `columns` columns; ".." stands for the part that is cut off.
std::string FitColumns(const std::string& text, int columns) {
  if (CountColumns(text) <= columns) return text;
  std::string shown;
  int used = 0;
  for (const char c : text) {
    used += (static_cast<unsigned char>(c) >> 6) != 2 ? 1 : 0;
    if (used > std::max(columns - 2, 0)) break;
    shown += c;
  }
  return columns >= 2 ? shown + ".." : shown;
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

// Ends the line, so that an error message begins on a new one.
ProgressBar::~ProgressBar() {
  if (shown_columns_ > 0 && g_line_is_drawn) std::fputc('\n', stderr);
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
      StderrIsLive() ? std::chrono::milliseconds(100) : std::chrono::milliseconds(10000);
  if (Clock::now() - last_draw_ >= interval) Draw(false);
}

void ProgressBar::End() { Draw(true); }

// The widest of these that fits: all parts, a shorter bar, no bar, no speed, a cut name, a cut
// line.
std::string ProgressBar::Text(bool last, int columns) const {
  const double elapsed = std::chrono::duration<double>(last_draw_ - start_).count();
  const auto fresh = static_cast<double>(done_ - resumed_);
  const double rate = elapsed > 0 ? fresh / elapsed : 0;
  const auto bar = [&](int64_t cells) {
    if (cells == 0) return std::string();
    const int64_t filled = total_ > 0 ? cells * done_ / total_ : cells;
    return fmt::format(" [{}{}]", std::string(static_cast<size_t>(filled), '#'),
                       std::string(static_cast<size_t>(cells - filled), '-'));
  };
  std::string counts = fmt::format(" {}/{}", done_, total_);
  if (resumed_ > 0) counts += fmt::format(" ({} resumed)", resumed_);
  const std::string speed = rate > 0 ? fmt::format("  {:.3g}/s", rate) : "";
  std::string rest;
  if (last) {
    rest = done_ < total_ ? fmt::format("  stopped after {}", FormatSeconds(elapsed))
                          : fmt::format("  {} in all", FormatSeconds(elapsed));
  } else if (rate > 0) {
    rest = fmt::format("  {} left", FormatSeconds(static_cast<double>(total_ - done_) / rate));
  }
  if (!note_.empty()) rest += "  " + note_;
  const std::string name = fmt::format("{:<12}", task_);
  if (columns == 0) return name + counts + speed + rest;
  const std::string texts[] = {name + bar(24) + counts + speed + rest,
                               name + bar(10) + counts + speed + rest, name + counts + speed + rest,
                               name + counts + rest};
  for (const std::string& text : texts) {
    if (CountColumns(text) <= columns) return text;
  }
  constexpr int kShortestName = 8;
  const int room = columns - CountColumns(counts + rest);
  return FitColumns(FitColumns(task_, std::max(room, kShortestName)) + counts + rest, columns);
}

void ProgressBar::Draw(bool last) {
  last_draw_ = Clock::now();
  if (g_is_muted) return;
  if (!StderrIsLive()) {
    std::fprintf(stderr, "%s\n", Text(last, 0).c_str());
    std::fflush(stderr);
    return;
  }
  const auto columns = static_cast<int>(StderrTextColumns());
  const std::string line = Text(last, columns);
  // After the terminal became narrower, the line that is there takes several rows.
  const int rows_above = shown_columns_ > 0 ? (shown_columns_ - 1) / (columns + 1) : 0;
  const std::string up = rows_above > 0 ? fmt::format("\033[{}A", rows_above) : "";
  std::fprintf(stderr, "%s\r%s%s%s", up.c_str(), line.c_str(), rows_above > 0 ? "\033[J" : "\033[K",
               last ? "\n" : "");
  shown_columns_ = last ? 0 : CountColumns(line);
  g_line_is_drawn = !last;
  std::fflush(stderr);
}

StatusLine::StatusLine() {
  if (!StderrIsLive()) return;
  if (!StdoutIsTerminal()) {
    mode_ = Mode::kLine;
    return;
  }
  const winsize size = StderrSize();
  if (size.ws_row < 4) return;
  mode_ = Mode::kBottom;
  rows_ = size.ws_row;
  columns_ = size.ws_col;
  std::fflush(stdout);
  // Make room for the last row, then let only the rows above it scroll.
  std::fprintf(stderr, "\n\0337\033[1;%dr\0338\033[1A", rows_ - 1);
  std::fflush(stderr);
  g_status_line_active = 1;
}

StatusLine::~StatusLine() {
  std::fflush(stdout);
  if (mode_ == Mode::kLine && g_line_is_drawn) {
    std::fprintf(stderr, "\r\033[K");
    g_line_is_drawn = false;
  }
  if (mode_ == Mode::kBottom) {
    std::fprintf(stderr, "\0337\033[%d;1H\033[K\033[r\0338", rows_);
    g_status_line_active = 0;
  }
  std::fflush(stderr);
}

void StatusLine::FollowSize() {
  const winsize size = StderrSize();
  columns_ = size.ws_col;
  if (mode_ != Mode::kBottom || size.ws_row == rows_ || size.ws_row < 4) return;
  // A taller terminal shows the old line in its middle; a shorter one has dropped it.
  if (size.ws_row > rows_) std::fprintf(stderr, "\0337\033[%d;1H\033[K\0338", rows_);
  rows_ = size.ws_row;
  std::fprintf(stderr, "\0337\033[1;%dr\0338", rows_ - 1);
}

void StatusLine::Update(const std::string& text, bool force) {
  if (mode_ == Mode::kNone) return;
  const auto now = std::chrono::steady_clock::now();
  if (!force && now - last_draw_ < std::chrono::milliseconds(100)) return;
  last_draw_ = now;
  std::fflush(stdout);
  FollowSize();
  const std::string shown = FitColumns(text, std::max(columns_ - 1, 1));
  if (mode_ == Mode::kLine) {
    std::fprintf(stderr, "\r%s\033[K", shown.c_str());
    g_line_is_drawn = true;
  } else {
    const bool style = WantsStyle();
    std::fprintf(stderr, "\0337\033[%d;1H%s%s%s\033[K\0338", rows_, style ? "\033[7m" : "",
                 shown.c_str(), style ? "\033[0m" : "");
  }
  std::fflush(stderr);
}

bool StderrIsLive() { return isatty(STDERR_FILENO) == 1 && TerminalTakesControls(); }

bool StdinIsTerminal() { return isatty(STDIN_FILENO) == 1; }
bool StdoutIsTerminal() { return isatty(STDOUT_FILENO) == 1; }

bool TerminalTakesControls() {
  const char* const term = std::getenv("TERM");
  return term != nullptr && *term != '\0' && std::string_view(term) != "dumb";
}

bool StdoutTakesStyle() { return StdoutIsTerminal() && WantsStyle() && TerminalTakesControls(); }

void MuteOutput() { g_is_muted = true; }
bool OutputIsMuted() { return g_is_muted; }

void Print(const std::string& text) {
  if (g_is_muted) return;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    const int error = errno;
    if (error == EPIPE) throw ClosedPipe();
    throw IoError("stdout",
                  fmt::format("cannot write to standard output: {}", std::strerror(error)));
  }
}

void PrintError(const std::string& line) {
  if (g_is_muted) return;
  std::fprintf(stderr, "%s%s\n", g_line_is_drawn ? "\r\033[K" : "", line.c_str());
  g_line_is_drawn = false;
}

void PrintErrorWrapped(const std::string& text, const std::string& left) {
  if (isatty(STDERR_FILENO) != 1) return PrintError(left + text);
  PrintError(left + WrapWords(text, StderrTextColumns(), left.size(), left.size()));
}

void PrintErrorList(const std::string& line) {
  if (isatty(STDERR_FILENO) != 1) return PrintError(line);
  PrintError(WrapList(line, StderrTextColumns(), 2));
}

}  // namespace pmkvq::cli
