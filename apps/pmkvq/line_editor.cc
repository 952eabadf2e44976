#include "line_editor.h"

#include <histedit.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdlib>
#include <cwchar>
#include <filesystem>
#include <iostream>

#include "pmkvq/io/json_lines.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

constexpr int kHistoryEntries = 1000;
// Stands for a line break inside an edited line: libedit has no line breaks there. The symbol for
// newline (U+2424) shows the line breaks of a paste, and texts rarely contain it.
constexpr wchar_t kLineBreak = L'\x2424';

std::wstring Widen(const std::string& text) {
  std::wstring wide(text.size(), L'\0');
  const size_t size = std::mbstowcs(wide.data(), text.c_str(), wide.size());
  wide.resize(size == static_cast<size_t>(-1) ? 0 : size);
  return wide;
}

std::string Narrow(const wchar_t* text) {
  const size_t size = std::wcstombs(nullptr, text, 0);
  if (size == static_cast<size_t>(-1)) return "";
  std::string narrow(size, '\0');
  std::wcstombs(narrow.data(), text, size);
  return narrow;
}

std::wstring WithSymbols(std::wstring text) {
  for (wchar_t& c : text) {
    if (c == L'\n') c = kLineBreak;
  }
  return text;
}

bool TerminalCanEdit() {
  return StdinIsTerminal() && StdoutIsTerminal() && TerminalTakesControls();
}

// False: a signal came first. One may come between the prompt and the wait, and any thread may take
// it: a blocking read would then not end. So the flag is looked at between waits of 50 ms.
bool WaitForInput() {
  constexpr int kWaitMs = 50;
  while (true) {
    pollfd input = {STDIN_FILENO, POLLIN, 0};
    const int ready = poll(&input, 1, kWaitMs);
    const bool interrupted = ready < 0 && errno == EINTR;
    if (IsCancelled(InterruptFlag())) return false;
    if (ready != 0 && !interrupted) return true;
  }
}

}  // namespace

struct LineEditor::Impl {
  ~Impl() {
    if (editor == nullptr) return;
    if (!history_path.empty()) Event(H_SAVE, history_path.c_str());
    history_wend(history);
    el_end(editor);
  }

  void Open(const std::string& path);
  template <class... Args>
  bool Event(int operation, Args... args) {
    HistEventW event;
    return history_w(history, &event, operation, args...) >= 0;
  }

  static const wchar_t* Prompt(EditLine* editor) {
    Impl* self = nullptr;
    el_wget(editor, EL_CLIENTDATA, &self);
    return self->prompt.c_str();
  }
  static unsigned char Paste(EditLine* editor, wint_t);
  static int ReadCharacter(EditLine* editor, wchar_t* character);

  EditLine* editor = nullptr;  // Null where the terminal cannot edit.
  HistoryW* history = nullptr;
  std::string history_path;
  std::wstring prompt;
};

// Runs when the terminal announces a paste. Everything up to the end of the paste is text, also
// characters that are commands when typed. Terminals send line breaks of a paste as CR.
unsigned char LineEditor::Impl::Paste(EditLine* editor, wint_t) {
  const std::wstring end = L"\x1b[201~";
  std::wstring text;
  wchar_t c = 0;
  while (!text.ends_with(end)) {
    if (el_wgetc(editor, &c) != 1) return CC_EOF;
    text.push_back(c);
  }
  text.resize(text.size() - end.size());
  std::wstring kept;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == L'\r') {
      kept.push_back(kLineBreak);
      if (i + 1 < text.size() && text[i + 1] == L'\n') ++i;
    } else if (text[i] == L'\n') {
      kept.push_back(kLineBreak);
    } else if (text[i] == L'\t' || (text[i] >= L' ' && text[i] != L'\x7f')) {
      kept.push_back(text[i]);
    }
  }
  if (!kept.empty() && el_winsertstr(editor, kept.c_str()) != 0) return CC_ERROR;
  return CC_REFRESH;
}

int LineEditor::Impl::ReadCharacter(EditLine*, wchar_t* character) {
  std::mbstate_t state = {};
  while (true) {
    if (!WaitForInput()) {
      errno = EINTR;
      return -1;
    }
    char byte = 0;
    const ssize_t count = read(STDIN_FILENO, &byte, 1);
    if (count <= 0) return static_cast<int>(count);
    const size_t size = std::mbrtowc(character, &byte, 1, &state);
    if (size == static_cast<size_t>(-2)) continue;  // A part of a character.
    if (size != static_cast<size_t>(-1)) return 1;
    state = {};  // Not UTF-8: the byte is dropped.
  }
}

void LineEditor::Impl::Open(const std::string& path) {
  // libedit decodes typed bytes by the locale. Texts of this program are UTF-8 in every locale.
  std::setlocale(LC_CTYPE, "C.UTF-8");
  editor = el_init("pmkvq", stdin, stdout, stderr);
  if (editor == nullptr) return;
  history = history_winit();
  Event(H_SETSIZE, kHistoryEntries);
  Event(H_SETUNIQUE, 1);
  history_path = path;
  if (!path.empty()) {
    std::error_code ignored;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
    Event(H_LOAD, path.c_str());
  }
  el_wset(editor, EL_CLIENTDATA, this);
  el_wset(editor, EL_PROMPT, &Impl::Prompt);
  el_wset(editor, EL_GETCFN, &Impl::ReadCharacter);
  el_wset(editor, EL_EDITOR, L"emacs");
  el_wset(editor, EL_HIST, &history_w, history);
  el_wset(editor, EL_ADDFN, L"pmkvq-paste", L"take a pasted text", &Impl::Paste);
  el_wset(editor, EL_BIND, L"\\e[200~", L"pmkvq-paste", nullptr);
  // Keys that newcomers expect beside the arrows.
  el_wset(editor, EL_BIND, L"\\e[3~", L"ed-delete-next-char", nullptr);
  el_wset(editor, EL_BIND, L"\\e[1;5C", L"em-next-word", nullptr);
  el_wset(editor, EL_BIND, L"\\e[1;5D", L"ed-prev-word", nullptr);
  el_wset(editor, EL_BIND, L"^R", L"em-inc-search-prev", nullptr);
}

LineEditor::LineEditor(const std::string& history_path) : impl_(std::make_unique<Impl>()) {
  if (TerminalCanEdit()) impl_->Open(history_path);
}

LineEditor::~LineEditor() = default;

bool LineEditor::edits() const { return impl_->editor != nullptr; }
const std::string& LineEditor::history_path() const { return impl_->history_path; }

LineEnd LineEditor::Read(const std::string& prompt, std::string* line) {
  line->clear();
  if (!edits()) {
    if (StdoutIsTerminal() && StdinIsTerminal()) Print(prompt);
    // The terminal hands over whole lines, so nothing of it waits in a buffer here.
    if (StdinIsTerminal() && !WaitForInput()) return LineEnd::kInterrupted;
    if (ReadLine(std::cin, "stdin", line)) {
      if (line->ends_with('\r')) line->pop_back();
      return LineEnd::kLine;
    }
    return IsCancelled(InterruptFlag()) ? LineEnd::kInterrupted : LineEnd::kEndOfInput;
  }
  impl_->prompt = Widen(prompt);
  while (true) {
    Print("\x1b[?2004h");  // The terminal then marks where a paste begins and ends.
    // libedit shows the prompt before it takes over the keys. In between, the terminal would keep
    // typed keys to itself: Ctrl-C dropped them, and a paste came without its line breaks.
    el_wset(impl_->editor, EL_PREP_TERM, 1);
    int count = 0;
    const wchar_t* const text = el_wgets(impl_->editor, &count);
    Print("\x1b[?2004l");
    if (text != nullptr && count > 0) {
      std::wstring read(text, static_cast<size_t>(count));
      if (read.ends_with(L'\n')) read.pop_back();
      for (wchar_t& c : read) {
        if (c == kLineBreak) c = L'\n';
      }
      *line = Narrow(read.c_str());
      return LineEnd::kLine;
    }
    if (!IsCancelled(InterruptFlag())) {
      Print("\n");
      return LineEnd::kEndOfInput;
    }
    const LineInfoW* const info = el_wline(impl_->editor);
    const bool empty = info == nullptr || info->lastchar == info->buffer;
    Print("\n");
    if (empty || TerminationRequested()) return LineEnd::kInterrupted;
    ClearInterrupt();
    el_wset(impl_->editor, EL_UNBUFFERED, 0);
    el_reset(impl_->editor);
  }
}

void LineEditor::Remember(const std::string& message) {
  if (!edits()) return;
  const std::wstring entry = WithSymbols(Widen(message)) + L"\n";
  impl_->Event(H_ENTER, entry.c_str());
  if (impl_->history_path.empty()) return;
  // Saved at once: a program that is killed does not lose typed lines. The file may hold private
  // texts.
  impl_->Event(H_SAVE, impl_->history_path.c_str());
  chmod(impl_->history_path.c_str(), S_IRUSR | S_IWUSR);
}

std::string DefaultHistoryPath() {
  if (const char* const path = std::getenv("PMKVQ_HISTORY")) return path;
  if (const char* const state = std::getenv("XDG_STATE_HOME"); state != nullptr && *state == '/') {
    return std::string(state) + "/pmkvq/chat_history";
  }
  const char* const home = std::getenv("HOME");
  if (home == nullptr || *home != '/') return "";
  return std::string(home) + "/.local/state/pmkvq/chat_history";
}

LineEnd ReadMessage(LineEditor& editor, const std::string& prompt, std::string* message) {
  constexpr std::string_view kQuotes = "\"\"\"";
  constexpr const char* kMore = ". ";
  std::string line;
  if (const LineEnd end = editor.Read(prompt, &line); end != LineEnd::kLine) return end;
  message->clear();
  if (line.starts_with(kQuotes)) {
    line.erase(0, kQuotes.size());
    while (!line.ends_with(kQuotes)) {
      *message += line + "\n";
      const LineEnd end = editor.Read(kMore, &line);
      if (end == LineEnd::kInterrupted) return end;
      if (end == LineEnd::kEndOfInput) return LineEnd::kLine;
    }
    *message += line.substr(0, line.size() - kQuotes.size());
    return LineEnd::kLine;
  }
  while (line.ends_with('\\')) {
    line.pop_back();
    *message += line + "\n";
    const LineEnd end = editor.Read(kMore, &line);
    if (end == LineEnd::kInterrupted) return end;
    if (end == LineEnd::kEndOfInput) return LineEnd::kLine;
  }
  *message += line;
  return LineEnd::kLine;
}

}  // namespace pmkvq::cli
