// pmkvq methods: the cache methods of --kv, and the keys of one of them.
#include <fmt/format.h>

#include "commands.h"
#include "help_format.h"
#include "pmkvq/base/nearest_name.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/research/methods/registry.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

const char* KindOf(const MethodInfo& method) {
  return method.is_simulated ? "simulated: damages floats as its paper says and counts its bytes"
                             : "packed: real codes in real memory";
}

void PrintList(const std::vector<MethodInfo>& methods) {
  std::string text = "Cache methods for --kv NAME[:KEY=VALUE[+KEY=VALUE...]]\n";
  for (const bool simulated : {false, true}) {
    text += simulated ? "\nsimulated, to be compared with:\n" : "\npacked:\n";
    for (const MethodInfo& method : methods) {
      if (method.is_simulated == simulated) {
        text += fmt::format("  {:<10} {}\n", method.name, method.description);
      }
    }
  }
  text += "\nrecipes for --recipe NAME:\n";
  for (const KvRecipe& recipe : KvRecipes()) {
    text += fmt::format("  {:<10} --kv {}: {}\n", recipe.name, recipe.spec, recipe.description);
  }
  Print(text + "\n`pmkvq methods NAME` lists the keys of a method.\n");
}

void PrintMethod(const MethodInfo& method) {
  std::string text = fmt::format("{}: {}\n{}\n", method.name, method.description, KindOf(method));
  if (method.is_calibrated) {
    text += fmt::format("`pmkvq calibrate --kv {} ...` makes the file of from=\n", method.name);
  }
  for (const SpecKey& key : method.keys) {
    if (key.kind == SpecKey::Kind::kWord) {
      text += fmt::format("\n  {}\n      {}\n", key.name, key.help);
    } else {
      text += fmt::format("\n  {}=  {} (default: {})\n      {}\n", key.name, key.Values(),
                          key.fallback, key.help);
    }
  }
  Print(text);
}

void Run(const std::string& name) {
  const std::vector<MethodInfo> methods = ListMethods();
  if (name.empty()) {
    PrintList(methods);
    return;
  }
  const std::string method_name = name.substr(0, name.find(':'));
  std::vector<std::string> names;
  for (const MethodInfo& method : methods) {
    if (method.name == method_name) return PrintMethod(method);
    names.push_back(method.name);
  }
  throw CLI::ValidationError(fmt::format("unknown method '{}'{}; there are {}", method_name,
                                         DidYouMean(method_name, names), fmt::join(names, ", ")));
}

}  // namespace

void AddMethods(CLI::App& app) {
  auto name = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("methods", "list the cache methods, or the keys of one");
  command->add_option("NAME", *name, "method whose keys are listed");
  AddExamples(*command, {"pmkvq methods", "pmkvq methods pm-kvq"});
  command->callback([name] { Run(*name); });
}

}  // namespace pmkvq::cli
