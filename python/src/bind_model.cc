// Model and Tokenizer.
#include <fmt/format.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>

#include "bindings.h"
#include "interruptible.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/io/json.h"
#include "pmkvq/tensor/device/device_info.h"

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

LoadedModel Load(const std::string& path, const std::string& weights, int threads,
                 const std::string& device) {
  LoadedModel loaded{path, nullptr};
  const std::optional<DeviceId> id = ParseDevice(device);
  if (!id) {
    throw InvalidInput("device", fmt::format("found '{}', expected cpu, cuda or cuda:N", device));
  }
  RunInterruptibly("load", [&](const CancelFlag* /*cancel*/) {
    ModelOptions options;
    options.device = *id;
    options.weights = ParseWeightMode(weights);
    options.num_threads = threads > 0 ? threads : DefaultThreads();
    loaded.model = Model::Load(path, options);
  });
  return loaded;
}

TextCodec LoadCodec(const std::string& path, const std::optional<std::string>& tokenizer,
                    const std::optional<std::string>& chat_template) {
  const nb::gil_scoped_release release;
  TextCodec codec{Tokenizer::Load(tokenizer.value_or(path)),
                  chat_template ? FindChatTemplate(path, *chat_template, "chat_template")
                                : LoadChatTemplate(path),
                  std::nullopt, std::nullopt};
  ChatTemplate tokens;  // A template of "none" has none.
  SetSpecialTokensOf(path, &tokens);
  const auto id_of = [&](const char* name) -> std::optional<int32_t> {
    const std::string text = tokens.SpecialToken(name);
    const int32_t id = text.empty() ? -1 : codec.tokenizer->TokenId(text);
    if (id < 0) return std::nullopt;
    return id;
  };
  codec.bos_id = id_of("bos_token");
  codec.eos_id = id_of("eos_token");
  return codec;
}

// Role, content, and the other members of the message as a JSON object or "".
using Message = std::tuple<std::string, std::string, std::string>;

MarkedText Render(const TextCodec& codec, const std::vector<Message>& messages,
                  const std::string& variables, const std::optional<std::string>& date,
                  bool add_generation_prompt) {
  ChatTemplate chat_template = codec.chat_template;
  if (!variables.empty()) {
    chat_template.SetVariables(JsonValue::Parse(variables, "template_args"));
  }
  if (date) chat_template.SetDate(*date);
  std::vector<ChatMessage> turns;
  for (const auto& [role, content, more] : messages) {
    turns.push_back({role, content,
                     more.empty()
                         ? nullptr
                         : std::make_shared<const JsonValue>(JsonValue::Parse(more, "message"))});
  }
  return chat_template.Render(turns, add_generation_prompt);
}

}  // namespace

void BindModel(nb::module_& module) {
  nb::class_<DeviceInfo>(module, "Device", "A CUDA device that this package can use.")
      .def_prop_ro("id", [](const DeviceInfo& self) { return NameOf(self.id); })
      .def_ro("name", &DeviceInfo::name)
      .def_prop_ro("capability",
                   [](const DeviceInfo& self) {
                     return std::tuple(self.capability_major, self.capability_minor);
                   })
      .def_ro("total_bytes", &DeviceInfo::total_bytes)
      .def_ro("free_bytes", &DeviceInfo::free_bytes);
  module.def(
      "list_devices",
      [] {
        DeviceList list = ListDevices();
        return std::tuple(list.versions, list.problem, list.devices);
      },
      nb::call_guard<nb::gil_scoped_release>());

  nb::class_<LoadedModel>(module, "Model", "Weights in memory. Any number of LLMs may share them.")
      .def_static("load", &Load, nb::arg("path"), nb::arg("weights"), nb::arg("threads"),
                  nb::arg("device"))
      .def_ro("path", &LoadedModel::path)
      .def_prop_ro("weights", [](const LoadedModel& self) { return NameOf(self.model->weights()); })
      .def_prop_ro("device", [](const LoadedModel& self) { return NameOf(self.model->device()); })
      .def_prop_ro("identity",
                   [](const LoadedModel& self) { return self.model->checkpoint().Identity(); })
      .def_prop_ro("warnings",
                   [](const LoadedModel& self) { return self.model->checkpoint().warnings(); })
      .def_prop_ro("weight_bytes",
                   [](const LoadedModel& self) { return self.model->weight_bytes(); })
      .def_prop_ro("vocab_size",
                   [](const LoadedModel& self) { return self.model->config().vocab_size; })
      .def_prop_ro("num_layers",
                   [](const LoadedModel& self) { return self.model->kv_geometry().num_layers(); })
      .def_prop_ro(
          "max_positions",
          [](const LoadedModel& self) { return self.model->config().max_position_embeddings; })
      .def_prop_ro("eos_token_ids", [](const LoadedModel& self) {
        return std::vector<int64_t>(self.model->config().eos_token_ids);
      });

  nb::class_<TextCodec>(module, "Tokenizer")
      .def_static("load", &LoadCodec, nb::arg("path"), nb::arg("tokenizer") = nb::none(),
                  nb::arg("chat_template") = nb::none())
      .def_static(
          "is_in", [](const std::string& path) { return Tokenizer::IsIn(path); }, nb::arg("path"))
      .def_prop_ro("vocab_size", [](const TextCodec& self) { return self.tokenizer->vocab_size(); })
      .def_prop_ro("has_chat_template",
                   [](const TextCodec& self) { return !self.chat_template.IsNone(); })
      .def_prop_ro("chat_template",
                   [](const TextCodec& self) { return TextOf(self.chat_template.Text()); })
      .def_ro("bos_token_id", &TextCodec::bos_id)
      .def_ro("eos_token_id", &TextCodec::eos_id)
      .def(
          "encode",
          [](const TextCodec& self, const std::string& text, bool parse_special, bool add_special) {
            const nb::gil_scoped_release release;
            return add_special ? self.tokenizer->EncodeWhole(text, parse_special)
                               : self.tokenizer->Encode(text, parse_special);
          },
          nb::arg("text"), nb::arg("parse_special"), nb::arg("add_special"))
      .def(
          "decode",
          [](const TextCodec& self, const std::vector<int32_t>& ids, bool skip_special) {
            return TextOf(self.tokenizer->Decode(ids, skip_special));
          },
          nb::arg("ids"), nb::arg("skip_special"))
      .def(
          "token_id",
          [](const TextCodec& self, const std::string& token) -> std::optional<int32_t> {
            const int32_t id = self.tokenizer->TokenId(token);
            if (id < 0) return std::nullopt;
            return id;
          },
          nb::arg("token"))
      .def(
          "render",
          [](const TextCodec& self, const std::vector<Message>& messages,
             const std::string& variables, const std::optional<std::string>& date,
             bool add_generation_prompt) {
            return Render(self, messages, variables, date, add_generation_prompt).text;
          },
          nb::arg("messages"), nb::arg("variables"), nb::arg("date"),
          nb::arg("add_generation_prompt"))
      .def(
          "encode_chat",
          [](const TextCodec& self, const std::vector<Message>& messages,
             const std::string& variables, const std::optional<std::string>& date,
             bool add_generation_prompt) {
            const nb::gil_scoped_release release;
            return self.tokenizer->Encode(
                Render(self, messages, variables, date, add_generation_prompt));
          },
          nb::arg("messages"), nb::arg("variables"), nb::arg("date"),
          nb::arg("add_generation_prompt"));
}

}  // namespace pmkvq::python
