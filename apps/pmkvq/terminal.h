// What the program shows a person: messages and progress on stderr, live when stderr is a
// terminal, plain lines otherwise (and with TERM=dumb); and Ctrl-C.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/sinks.h"

namespace pmkvq::cli {

// Set by the first Ctrl-C; one more, 0.3 s later or after, ends the process at once.
const CancelFlag* InterruptFlag();
void InstallInterruptHandler();
// For a chat, where Ctrl-C ends an answer and not the program: forgets a Ctrl-C, but not a SIGTERM.
void ClearInterrupt();
// SIGTERM has come: the program should end, also where Ctrl-C would only end an answer.
bool TerminationRequested();
// Ends the program as interrupted (exit code 130) if Ctrl-C was pressed. `where` names the command.
void ExitIfInterrupted(const char* where);

// From now on this process shows nothing: no results, notes or progress. For all ranks but the
// first of a command that several compute; what ends the process is still said, by main().
void MuteOutput();
bool OutputIsMuted();

class StderrLog : public LogSink {
 public:
  void Info(const std::string& message) override;
  void Warning(const std::string& message) override;
};

// "sensitivity  [#######-------] 14/32  1.9/s  9 s left". On a terminal one line that is redrawn
// and fits its width, also after a change of size; otherwise a line at the start, at most one every
// 10 s, and one at the end ("4 s in all", or "stopped after 4 s" where units are left).
class ProgressBar : public ProgressSink {
 public:
  ProgressBar() = default;
  ~ProgressBar() override;
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void Begin(const std::string& task, int64_t total, int64_t done) override;
  void Advance(int64_t units) override;
  void End() override;
  // Text behind the numbers ("solved 12"), shown with the next redraw.
  void SetNote(const std::string& note) { note_ = note; }

 private:
  using Clock = std::chrono::steady_clock;
  void Draw(bool last);
  std::string Text(bool last, int columns) const;

  std::string task_;
  std::string note_;
  int64_t total_ = 0;
  int64_t done_ = 0;
  int64_t resumed_ = 0;
  int shown_columns_ = 0;  // Of the line that is drawn on a terminal and not ended; else 0.
  Clock::time_point start_;
  Clock::time_point last_draw_;
};

// A status line kept at the bottom of the terminal while text scrolls above it; where only stderr
// is a terminal, a line there that is redrawn and erased at the end. Does nothing where stderr is
// none, or TERM is dumb.
class StatusLine {
 public:
  StatusLine();
  ~StatusLine();
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  bool active() const { return mode_ != Mode::kNone; }
  // At most ten redraws a second; `force` draws in any case.
  void Update(const std::string& text, bool force = false);

 private:
  enum class Mode : uint8_t { kNone, kBottom, kLine };

  // Keeps the last row apart, also after a change of size.
  void FollowSize();

  Mode mode_ = Mode::kNone;
  int rows_ = 0;
  int columns_ = 0;
  std::chrono::steady_clock::time_point last_draw_;
};

// stderr is a terminal that moves its cursor.
bool StderrIsLive();
bool StdinIsTerminal();
bool StdoutIsTerminal();
// Whether the terminal obeys control sequences (cursor movement); with TERM=dumb it would print
// them.
bool TerminalTakesControls();
// Stdout is a terminal that takes colours: TERM is not dumb, NO_COLOR is unset or empty.
bool StdoutTakesStyle();

// The reader of stdout is gone. Caught in main().
class ClosedPipe : public IoError {
 public:
  ClosedPipe() : IoError("stdout", "the reader of standard output is gone") {}
};

// Writes to stdout at once. Throws ClosedPipe, IoError.
void Print(const std::string& text);
// One line on stderr. Replaces a progress or status line that is shown.
void PrintError(const std::string& line);
// `left` and `text` as one line on stderr. Where that is a narrower terminal, `text` is broken at
// blanks and goes on below its first line.
void PrintErrorWrapped(const std::string& text, const std::string& left = "");
// The same for a list of facts: on a terminal it is broken at commas to the width, else at blanks.
void PrintErrorList(const std::string& line);

}  // namespace pmkvq::cli
