#include "completion_scripts.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>

namespace pmkvq::cli {
namespace {

// In single quotes, where the three shells take every character as it is.
// fish alone reads a backslash there.
std::string Quoted(const std::string& text, bool is_fish = false) {
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'') {
      quoted += is_fish ? "\\'" : "'\\''";
    } else {
      if (c == '\\' && is_fish) quoted += '\\';
      quoted += c;
    }
  }
  return quoted + "'";
}

std::string QuotedPaths(const CommandInfo& root, bool is_fish = false) {
  std::string text;
  for (const CommandInfo* command : ListCommands(root)) {
    if (command != &root) text += " " + Quoted(command->path, is_fish);
  }
  return text.substr(1);
}

// Names that "COMMAND -" offers in bash.
std::string OptionNames(const CommandInfo& command) {
  std::string text;
  for (const OptionInfo& option : command.options) {
    for (const std::string& name : option.names) text += " " + name;
  }
  return text.empty() ? text : text.substr(1);
}

std::string CommandNames(const CommandInfo& command) {
  std::string text;
  for (const CommandInfo& inner : command.commands) text += " " + inner.name;
  return text.empty() ? text : text.substr(1);
}

// What bash does at the value of an option: sets `words` and `kind`.
std::string BashAction(const OptionInfo& option) {
  const char* kind = "none";
  if (option.kind == ValueKind::kFile) kind = "file";
  if (option.kind == ValueKind::kFolder) kind = "folder";
  return fmt::format("words={} kind={}", Quoted(fmt::format("{}", fmt::join(option.choices, " "))),
                     kind);
}

// The same where no option waits for its value: for the first positional argument.
std::string BashArguments(const CommandInfo& command) {
  for (const OptionInfo& option : command.options) {
    if (!option.argument.empty()) return BashAction(option);
  }
  return "words='' kind=none";
}

// Options with the same action share a line.
std::string BashValues(const CommandInfo& command) {
  std::map<std::string, std::string> patterns;
  for (const OptionInfo& option : command.options) {
    if (option.kind == ValueKind::kNone || option.names.empty()) continue;
    std::string& pattern = patterns[BashAction(option)];
    for (const std::string& name : option.names) pattern += (pattern.empty() ? "" : "|") + name;
  }
  std::string text;
  for (const auto& [action, pattern] : patterns) {
    text += fmt::format("    {}) {} is_value=1 ;;\n", pattern, action);
  }
  return text;
}

constexpr char kBash[] = R"bash(# Completion of pmkvq in bash; made by `pmkvq completion bash`.
_pmkvq() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
  # bash splits --name=value in three words.
  if [[ $cur == = ]]; then
    cur=
  elif [[ $prev == = ]]; then
    prev=${COMP_WORDS[COMP_CWORD - 2]}
  fi
  local at=pmkvq i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "$at ${COMP_WORDS[i]}" in
    @PATHS@) at+=" ${COMP_WORDS[i]}" ;;
    *) break ;;
    esac
  done
  local commands='' options='' words='' kind='' is_value=''
  case $at in
@COMMANDS@  esac
  if [[ -z $is_value && $cur == -* ]]; then
    words=$options kind=none
  elif [[ -z $is_value && -n $commands ]]; then
    words=$commands kind=none
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  case $kind in
  none) compopt +o default +o bashdefault ;;
  folder) compopt +o default +o bashdefault -o dirnames ;;
  esac
  # With names of choices, names of files are offered, too.
  if [[ $kind == file && ${#COMPREPLY[@]} -gt 0 ]]; then
    compopt -o filenames
    mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$cur")
  fi
}
complete -o default -o bashdefault -F _pmkvq pmkvq
)bash";

std::string Replace(std::string text, const std::string& mark, const std::string& by) {
  return text.replace(text.find(mark), mark.size(), by);
}

std::string BashCase(const CommandInfo& command) {
  std::string text = fmt::format("  {})\n    options={}\n    {}\n", Quoted(command.path),
                                 Quoted(OptionNames(command)), BashArguments(command));
  if (!command.commands.empty()) {
    text += fmt::format("    commands={}\n", Quoted(CommandNames(command)));
  }
  const std::string values = BashValues(command);
  if (!values.empty()) text += "    case $prev in\n" + values + "    esac\n";
  return text + "    ;;\n";
}

// "[", "]" and ":" end parts of a specification of _arguments.
std::string ZshText(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') escaped += '\\';
    escaped += c;
  }
  return escaped;
}

std::string ZshAction(const OptionInfo& option) {
  std::string choices;
  for (const std::string& choice : option.choices) choices += " " + ZshText(choice);
  if (!choices.empty()) choices = choices.substr(1);
  if (option.kind == ValueKind::kFolder) return "_files -/";
  if (option.kind != ValueKind::kFile) {
    return choices.empty() ? " " : fmt::format("({})", choices);
  }
  if (choices.empty()) return "_files";
  return fmt::format("{{compadd {}; _files}}", choices);
}

std::string ZshArguments(const CommandInfo& command) {
  std::string text;
  for (const OptionInfo& option : command.options) {
    const std::string value = option.kind == ValueKind::kNone
                                  ? ""
                                  : fmt::format(":{}:{}", ZshText(option.value), ZshAction(option));
    if (!option.argument.empty()) text += " \\\n      " + Quoted("*" + value);
    for (const std::string& name : option.names) {
      const std::string equals = name.starts_with("--") && !value.empty() ? "=" : "";
      text += " \\\n      " +
              Quoted(fmt::format("*{}{}[{}]{}", name, equals, ZshText(option.help), value));
    }
  }
  return text;
}

std::string ZshCase(const CommandInfo& command) {
  std::string text = fmt::format("  {})\n", Quoted(command.path));
  if (!command.commands.empty()) {
    text += "    commands=(\n";
    for (const CommandInfo& inner : command.commands) {
      text += "      " + Quoted(ZshText(inner.name) + ":" + inner.help) + "\n";
    }
    text += "    )\n    [[ $words[CURRENT] == -* ]] || _describe command commands\n";
  }
  return text + "    _arguments -S" + ZshArguments(command) + "\n    ;;\n";
}

constexpr char kZsh[] = R"zsh(#compdef pmkvq
# Completion of pmkvq in zsh; made by `pmkvq completion zsh`. A file named _pmkvq in a folder of
# $fpath, or: source <(pmkvq completion zsh) behind compinit.
_pmkvq() {
  local at=pmkvq
  local -i i=2
  local -a commands known
  known=(@PATHS@)
  while ((i < CURRENT && ${known[(Ie)$at $words[i]]})); do
    at="$at $words[i]"
    ((i++))
  done
  words=("$at" "${(@)words[i,-1]}")
  ((CURRENT -= i - 2))
  case $at in
@COMMANDS@  esac
}
if [[ $funcstack[1] == _pmkvq ]]; then
  _pmkvq "$@"
else
  compdef _pmkvq pmkvq
fi
)zsh";

std::string FishLines(const CommandInfo& command) {
  const std::string here = "complete -c pmkvq -n " + Quoted("__pmkvq_at " + command.path, true);
  std::string text;
  for (const CommandInfo& inner : command.commands) {
    text += fmt::format("{} -f -a {} -d {}\n", here, inner.name, Quoted(inner.help, true));
  }
  for (const OptionInfo& option : command.options) {
    if (option.names.empty()) continue;  // Names of files, as everywhere.
    std::string line = here;
    for (const std::string& name : option.names) {
      const bool is_long = name.starts_with("--");
      line += (is_long ? " -l " : " -s ") + name.substr(is_long ? 2 : 1);
    }
    if (option.kind == ValueKind::kFile) line += " -r -F";
    if (option.kind == ValueKind::kFolder) line += " -x -a '(__fish_complete_directories)'";
    if (option.kind == ValueKind::kAnyText) line += " -x";
    if (!option.choices.empty()) {
      line += " -a " + Quoted(fmt::format("{}", fmt::join(option.choices, " ")), true);
    }
    text += line + " -d " + Quoted(option.help, true) + "\n";
  }
  return text;
}

constexpr char kFish[] = R"fish(# Completion of pmkvq in fish; made by `pmkvq completion fish`.
set -g __pmkvq_known @PATHS@
# Whether the command line so far names this command.
function __pmkvq_at
    set -l at pmkvq
    for word in (commandline -opc)[2..]
        contains -- "$at $word" $__pmkvq_known; or break
        set at "$at $word"
    end
    test "$at" = "$argv"
end
)fish";

}  // namespace

std::string BashCompletion(const CommandInfo& root) {
  std::string paths;
  std::string cases;
  for (const CommandInfo* command : ListCommands(root)) {
    if (command != &root) paths += (paths.empty() ? "" : " | ") + Quoted(command->path);
    cases += BashCase(*command);
  }
  return Replace(Replace(kBash, "@PATHS@", paths), "@COMMANDS@", cases);
}

std::string ZshCompletion(const CommandInfo& root) {
  std::string cases;
  for (const CommandInfo* command : ListCommands(root)) cases += ZshCase(*command);
  return Replace(Replace(kZsh, "@PATHS@", QuotedPaths(root)), "@COMMANDS@", cases);
}

std::string FishCompletion(const CommandInfo& root) {
  std::string text = Replace(kFish, "@PATHS@", QuotedPaths(root, true));
  for (const CommandInfo* command : ListCommands(root)) text += FishLines(*command);
  return text;
}

}  // namespace pmkvq::cli
