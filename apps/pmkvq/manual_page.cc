#include "manual_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <sstream>

namespace pmkvq::cli {
namespace {

// A text that roff prints as it is: no line starts a request, no dash becomes a hyphen.
std::string Roff(const std::string& text) {
  std::string escaped;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool is_first = i == 0 || text[i - 1] == '\n';
    if (is_first && (c == '.' || c == '\'')) escaped += "\\&";
    if (c == '\\') {
      escaped += "\\e";
    } else if (c == '-') {
      escaped += "\\-";
    } else if (c == '\'') {
      escaped += "\\(aq";
    } else if (c == '`') {
      escaped += "\\(ga";
    } else if (c == '^') {
      escaped += "\\(ha";
    } else if (c == '~') {
      escaped += "\\(ti";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

std::string Bold(const std::string& text) { return "\\fB" + Roff(text) + "\\fR"; }
std::string Italic(const std::string& text) { return "\\fI" + Roff(text) + "\\fR"; }

std::string OptionEntry(const OptionInfo& option) {
  std::string head;
  for (const std::string& name : option.names) head += (head.empty() ? "" : ", ") + Bold(name);
  if (option.names.empty()) head = Italic(option.argument);
  if (!option.value.empty() && !option.names.empty()) {
    head += " " + (option.value.starts_with('{') ? Roff(option.value) : Italic(option.value));
  }
  return ".TP\n" + head + "\n" + Roff(option.help) + "\n";
}

std::string Synopsis(const CommandInfo& command) {
  std::string text = ".SH SYNOPSIS\n" + Bold(command.path);
  if (!command.commands.empty()) text += " " + Italic("COMMAND");
  text += " [" + Italic("OPTIONS") + "]";
  for (const OptionInfo& option : command.options) {
    if (option.argument.empty()) continue;
    const std::string name = Italic(option.argument);
    text += option.is_required ? " " + name : " [" + name + "]";
  }
  return text + "\n";
}

std::string Options(const CommandInfo& command) {
  std::string text;
  for (const std::string& group : command.groups) {
    std::string entries;
    for (const OptionInfo& option : command.options) {
      if (option.group == group) entries += OptionEntry(option);
    }
    if (entries.empty()) continue;
    const bool is_plain = group == "Options" || group == "Positionals";
    text += (is_plain ? "" : ".SS " + Roff(group) + "\n") + entries;
  }
  return text.empty() ? "" : ".SH OPTIONS\n" + text;
}

// "Examples:" and command lines, which keep their lines, and notes behind them.
std::string Footer(const std::string& footer) {
  std::string text;
  std::istringstream lines(footer);
  bool is_example = false;
  for (std::string line; std::getline(lines, line);) {
    if (line == "Examples:") {
      text += ".SH EXAMPLES\n.nf\n";
      is_example = true;
      continue;
    }
    if (is_example && line.empty()) {
      text += ".fi\n.SH NOTES\n";
      is_example = false;
      continue;
    }
    text += line.empty() ? ".PP\n" : Roff(line) + "\n";
  }
  return is_example ? text + ".fi\n" : text;
}

constexpr char kExitStatus[] = R"(.SH EXIT STATUS
.TP
0
fine
.TP
1
failed: one line on standard error says what is wrong
.TP
2
wrong usage
.TP
130
interrupted
)";

constexpr char kEnvironment[] = R"(.SH ENVIRONMENT
.TP
\fBPMKVQ_TARGET\fR
instruction set to run on, one of those that \fBpmkvq \-\-version\fR lists
.TP
\fBPMKVQ_HISTORY\fR
file for what was typed in a chat; empty: none
(default: \fI\(ti/.local/state/pmkvq/chat_history\fR)
.TP
\fBNO_COLOR\fR
not empty: no colours
)";

std::string SeeAlso(const CommandInfo& root, const CommandInfo& command) {
  std::string text;
  for (const CommandInfo* other : ListCommands(root)) {
    const bool is_child = std::any_of(command.commands.begin(), command.commands.end(),
                                      [&](const CommandInfo& inner) { return &inner == other; });
    const bool is_parent = other != &command && command.path.starts_with(other->path + " ");
    if (!is_child && !is_parent) continue;
    text += (text.empty() ? "" : ",\n") + Bold(ManualPageName(*other)) + "(1)";
  }
  return text.empty() ? "" : ".SH SEE ALSO\n" + text + "\n";
}

}  // namespace

std::string ManualPageName(const CommandInfo& command) {
  std::string name = command.path;
  std::replace(name.begin(), name.end(), ' ', '-');
  return name;
}

std::string ManualPage(const CommandInfo& root, const CommandInfo& command,
                       const std::string& version, const std::string& date) {
  const std::string name = ManualPageName(command);
  std::string title = name;
  std::transform(title.begin(), title.end(), title.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  std::string text = fmt::format(".TH \"{}\" 1 \"{}\" \"pmkvq {}\" \"User Commands\"\n",
                                 Roff(title), date, version);
  text += fmt::format(".SH NAME\n{} \\- {}\n", Roff(name), Roff(command.help));
  text += Synopsis(command);
  if (!command.commands.empty()) {
    text += ".SH COMMANDS\n";
    for (const CommandInfo& inner : command.commands) {
      text += ".TP\n" + Bold(inner.name) + "\n" + Roff(inner.help) + "\n";
    }
  }
  text += Options(command) + Footer(command.footer) + kExitStatus + kEnvironment;
  return text + SeeAlso(root, command);
}

}  // namespace pmkvq::cli
