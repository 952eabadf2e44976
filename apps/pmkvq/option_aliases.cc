#include "option_aliases.h"

#include <fmt/format.h>

#include <optional>

#include "foreign_names.h"

namespace pmkvq::cli {
namespace {

// "--name=value" in two.
struct Argument {
  explicit Argument(const std::string& text)
      : equals(text.starts_with("--") ? text.find('=') : std::string::npos),
        name(text.substr(0, equals)) {}
  size_t equals;
  std::string name;
};

// Whether the next argument is the option's value.
bool TakesNext(CLI::App& command, const std::string& argument) {
  if (!argument.starts_with('-')) return false;
  const CLI::Option* option = command.get_option_no_throw(argument);
  return option != nullptr && option->get_items_expected_max() > 0;
}

int WidthOfType(const std::string& name, const std::string& type) {
  if (type == "f16") return 16;
  if (type == "q8_0") return 8;
  if (type == "q4_0") return 4;
  throw CLI::ValidationError(
      name, fmt::format("found '{}', expected f16, q8_0 or q4_0 (a cache of 2 bits is --kv "
                        "static-2, bf16 and f32 are --kv-dtype)",
                        type));
}

// Collects the types of keys and values.
struct CacheTypes {
  std::optional<int> k;
  std::optional<int> v;

  std::string Spec() const {
    const int k_bits = k.value_or(16);
    const int v_bits = v.value_or(16);
    if (k_bits != v_bits) return fmt::format("pm-kvq:static+k={}+v={}", k_bits, v_bits);
    return k_bits == 16 ? "fp16" : fmt::format("static-{}", k_bits);
  }
};

// The name in the table by which `command` knows the argument as another option; null: none.
const ForeignName* FindAlias(CLI::App& command, const std::string& name) {
  const ForeignName* foreign = FindForeignOption(name);
  if (foreign == nullptr || foreign->use == ForeignName::Use::kAnswer) return nullptr;
  if (command.get_option_no_throw(name) != nullptr) return nullptr;
  return command.get_option_no_throw(std::string(foreign->ours)) == nullptr ? nullptr : foreign;
}

void SetType(const ForeignName& alias, const std::string& type, CacheTypes& types) {
  std::optional<int>& width = alias.use == ForeignName::Use::kKeyType ? types.k : types.v;
  const std::string name(alias.name);
  if (width) throw CLI::ValidationError(name, "given more than once, expected it once");
  width = WidthOfType(name, type);
}

}  // namespace

std::vector<std::string> ReplaceAliases(CLI::App& app, const std::vector<std::string>& arguments) {
  CLI::App* command = &app;
  size_t i = 0;
  for (; i < arguments.size(); ++i) {
    const std::vector<CLI::App*> below = command->get_subcommands(
        [&](const CLI::App* other) { return other->get_name() == arguments[i]; });
    if (below.empty()) break;
    command = below.front();
  }
  std::vector<std::string> replaced(arguments.begin(),
                                    arguments.begin() + static_cast<std::ptrdiff_t>(i));
  CacheTypes types;
  for (; i < arguments.size() && arguments[i] != "--"; ++i) {
    const Argument argument(arguments[i]);
    const ForeignName* alias = FindAlias(*command, argument.name);
    if (alias == nullptr) {
      replaced.push_back(arguments[i]);
      if (TakesNext(*command, arguments[i]) && i + 1 < arguments.size()) {
        replaced.push_back(arguments[++i]);
      }
      continue;
    }
    const bool has_value = argument.equals != std::string::npos;
    if (alias->use == ForeignName::Use::kAlias) {
      const std::string ours(alias->ours);
      replaced.push_back(has_value ? ours + arguments[i].substr(argument.equals) : ours);
      if (!has_value && i + 1 < arguments.size()) replaced.push_back(arguments[++i]);
      continue;
    }
    if (!has_value && i + 1 == arguments.size()) {
      throw CLI::ValidationError(argument.name, "found nothing behind it, expected a value");
    }
    SetType(*alias, has_value ? arguments[i].substr(argument.equals + 1) : arguments[++i], types);
  }
  if (types.k || types.v) {
    replaced.emplace_back("--kv");
    replaced.push_back(types.Spec());
  }
  replaced.insert(replaced.end(), arguments.begin() + static_cast<std::ptrdiff_t>(i),
                  arguments.end());
  return replaced;
}

}  // namespace pmkvq::cli
