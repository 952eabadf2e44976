// pmkvq template: the prompt that a chat template makes of messages and other variables.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "commands.h"
#include "common_options.h"
#include "help_format.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/json_lines.h"
#include "pmkvq/text/jinja/template.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string file;
  std::string input;
  std::string cases;
  std::string dir;
  std::string json;
};

jinja::Variables VariablesOf(const JsonValue& object,
                             std::initializer_list<std::string_view> others) {
  if (!object.IsObject()) object.Fail("an object with the variables of the template");
  jinja::Variables variables;
  for (const std::string& name : object.Keys()) {
    if (std::find(others.begin(), others.end(), name) != others.end()) continue;
    variables.emplace_back(name, jinja::FromJson(object.Find(name)));
  }
  return variables;
}

JsonValue ReadVariables(const std::string& path) {
  if (path == "-") return JsonValue::Parse(ReadStdin(), "stdin");
  return JsonValue::ParseFile(path);
}

void RenderOne(const Options& options) {
  const auto chat_template = jinja::Template::Parse(ReadFile(options.file), options.file);
  const jinja::Variables variables = VariablesOf(ReadVariables(options.input), {});
  const std::string text = chat_template->Render(variables).text;
  if (options.json.empty()) {
    Print(text);
    return;
  }
  JsonWriter json;
  json.BeginObject().Key("text").String(text).EndObject();
  WriteJson(options.json, json.text());
}

// One rendering per line of a file; each line names its template. Errors are results, too.
void RenderCases(const Options& options) {
  std::map<std::string, std::shared_ptr<const jinja::Template>> templates;
  JsonWriter json;
  json.BeginArray();
  ForEachLine(options.cases, [&](std::string_view text, const std::string& where, int64_t) {
    const JsonValue line = JsonValue::Parse(text, where);
    const std::string name = line.At("template").AsString();
    json.BeginObject();
    try {
      std::shared_ptr<const jinja::Template>& chat_template = templates[name];
      if (chat_template == nullptr) {
        const std::string path = JoinPath(options.dir, name + ".jinja");
        chat_template = jinja::Template::Parse(ReadFile(path), path);
      }
      const jinja::Variables variables = VariablesOf(line, {"template", "case", "text", "error"});
      const std::string rendered = chat_template->Render(variables).text;  // May throw.
      json.Key("text").String(rendered);
    } catch (const InvalidInput& error) {
      json.Key("error").String(error.what());
    } catch (const Unsupported& error) {
      json.Key("error").String(error.what());
    }
    json.EndObject();
  });
  json.EndArray();
  WriteJson(options.json.empty() ? "-" : options.json, json.text());
}

}  // namespace

void AddTemplate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("template", "print the prompt that a chat template makes");
  auto* file = command->add_option("--file", options->file, "template in Jinja");
  auto* input = command->add_option("--input", options->input,
                                    "its variables, as a JSON object: messages, "
                                    "add_generation_prompt, ... (- for stdin)");
  auto* cases = command->add_option(
      "--cases", options->cases,
      "JSON lines, each with the variables of one rendering and the name of its template");
  auto* dir = command->add_option("--dir", options->dir, "folder with the NAME.jinja of --cases");
  command->add_option("--json", options->json,
                      "write the result as JSON (- for stdout): {\"text\": ...}; a list of these, "
                      "or {\"error\": ...}, for --cases");
  AddExamples(*command, {"pmkvq template --file chat_template.jinja --input variables.json",
                         "pmkvq template --cases cases.jsonl --dir templates --json -"});
  file->needs(input);
  input->needs(file);
  cases->needs(dir)->excludes(file);
  dir->needs(cases);
  command->callback([options] {
    if (!options->cases.empty()) {
      RenderCases(*options);
    } else if (!options->file.empty()) {
      RenderOne(*options);
    } else {
      throw CLI::RequiredError("--file or --cases");
    }
  });
}

}  // namespace pmkvq::cli
