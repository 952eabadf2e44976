// What goes into an engine and comes out of it, as Python objects with read-only members.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <optional>
#include <utility>

#include "bindings.h"
#include "engine_driver.h"
#include "pmkvq/base/random.h"
#include "pmkvq/engine/forced_output.h"

namespace nb = nanobind;

namespace pmkvq::python {
namespace {

nb::dict PagesOf(const PagesPerWidth& pages) {
  nb::dict result;
  for (const int bits : kWidths) result[nb::int_(bits)] = pages[WidthIndex(bits)];
  return result;
}

using Alternatives = std::vector<std::pair<int32_t, double>>;

Alternatives AlternativesOf(const TokenLogprobs& token) {
  Alternatives result;
  for (const TokenLogprob& other : token.top) result.emplace_back(other.token, other.logprob);
  return result;
}

}  // namespace

void BindRequests(nb::module_& module) {
  nb::class_<Request>(module, "Request")
      .def(
          "__init__",
          [](Request* self, std::vector<int32_t> prompt_ids, uint64_t seed, double temperature,
             int64_t top_k, double top_p, double min_p, int64_t max_tokens, int64_t min_tokens,
             std::vector<std::string> stop, std::vector<int32_t> stop_token_ids, bool ignore_eos,
             double repetition_penalty, double frequency_penalty, double presence_penalty,
             std::vector<std::pair<int32_t, float>> logit_bias, int64_t logprobs,
             int64_t prompt_logprobs) {
            Request request;
            request.prompt_ids = std::move(prompt_ids);
            request.seed = seed;
            request.sampling = {temperature, top_k, top_p, min_p};
            request.max_tokens = max_tokens;
            request.min_tokens = min_tokens;
            request.stop = std::move(stop);
            request.stop_ids = std::move(stop_token_ids);
            request.ignore_eos = ignore_eos;
            request.rules = {repetition_penalty, frequency_penalty, presence_penalty,
                             std::move(logit_bias)};
            request.num_logprobs = logprobs;
            request.num_prompt_logprobs = prompt_logprobs;
            new (self) Request(std::move(request));
          },
          nb::arg("prompt_ids"), nb::kw_only(), nb::arg("seed"), nb::arg("temperature"),
          nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"), nb::arg("max_tokens"),
          nb::arg("min_tokens"), nb::arg("stop"), nb::arg("stop_token_ids"), nb::arg("ignore_eos"),
          nb::arg("repetition_penalty"), nb::arg("frequency_penalty"), nb::arg("presence_penalty"),
          nb::arg("logit_bias"), nb::arg("logprobs"), nb::arg("prompt_logprobs"))
      .def_static("forced", &MakeForcedRequest, nb::arg("prompt_ids"), nb::arg("output_ids"),
                  nb::arg("vocab_size"));
  module.def("stream_seed", &StreamSeed, nb::arg("seed"), nb::arg("index"));

  nb::class_<KvSequenceStats>(module, "KvSnapshot",
                              "The cache of one sequence, in bytes and pages of 128 tokens.")
      .def_ro("num_tokens", &KvSequenceStats::num_tokens, "Tokens that are stored.")
      .def_ro("bytes", &KvSequenceStats::bytes, "Allocated: codes, metadata, sink, open page.")
      .def_ro("peak_bytes", &KvSequenceStats::peak_bytes, "The most that it took.")
      .def_ro("budget_bytes", &KvSequenceStats::budget_bytes, "The most that it may take.")
      .def_ro("kept_share", &KvSequenceStats::kept_share,
              "Of the tokens of each block and KV head: those that no method has evicted.")
      .def_ro("narrowed_bytes", &KvSequenceStats::narrowed_bytes,
              "Of pages that were brought to lower widths, as read.")
      .def_prop_ro(
          "pages", [](const KvSequenceStats& self) { return PagesOf(self.pages); },
          nb::sig("def pages(self) -> dict[int, int]"),
          "Number of K and V pages of all blocks by width: {16: .., 8: .., 4: .., 2: ..}.");

  nb::class_<TokenLogprobs>(module, "TokenLogprob",
                            "Natural logarithms of probabilities as the model gives them.")
      .def_prop_ro("token_id", [](const TokenLogprobs& self) { return self.drawn.token; })
      .def_prop_ro("logprob", [](const TokenLogprobs& self) { return self.drawn.logprob; })
      .def_prop_ro("top", &AlternativesOf, "The likeliest tokens in its place: (id, logprob).");

  nb::class_<Completion>(module, "Completion", "An answer.")
      .def_ro("text", &Completion::text, "Without special tokens and stop strings.")
      .def_ro("prompt_token_ids", &Completion::prompt_ids)
      .def_ro("token_ids", &Completion::output_ids,
              "What was drawn, the end-of-sequence token included.")
      .def_prop_ro(
          "finish_reason",
          [](const Completion& self) { return std::string(NameOf(self.finish_reason)); },
          "\"stop\", \"length\", \"kv_budget\", \"cancelled\" or \"error\".")
      .def_ro("stop_string", &Completion::stop_string,
              "The stop string that ended it; \"\": a token did.")
      .def_prop_ro(
          "error", [](const Completion& self) { return TextOf(self.error); },
          "With finish_reason \"error\": one line that says why; else \"\".")
      .def_ro("logprobs", &Completion::logprobs, "Of each token, where they were asked for.")
      .def_ro("prompt_logprobs", &Completion::prompt_logprobs,
              "Of each prompt token but the first, where they were asked for.")
      .def_ro("kv", &Completion::kv, "The cache at the end.")
      .def_ro("prefill_seconds", &Completion::prefill_seconds)
      .def_ro("decode_seconds", &Completion::decode_seconds)
      .def("__repr__", [](const Completion& self) {
        return nb::str("Completion(text={!r}, tokens={}, finish_reason={!r})")
            .format(self.text, self.output_ids.size(), std::string(NameOf(self.finish_reason)));
      });

  nb::class_<DrawnToken>(module, "TokenEvent", "A token was drawn.")
      .def_ro("text", &DrawnToken::text,
              "Text that became complete with it; may be \"\". The texts of all events make up the "
              "completion's.")
      .def_ro("token_id", &DrawnToken::token_id)
      .def_prop_ro(
          "logprob",
          [](const DrawnToken& self) -> std::optional<double> {
            if (!self.logprobs) return std::nullopt;
            return self.logprobs->drawn.logprob;
          },
          "Natural logarithm of its probability; None unless logprobs were asked for.")
      .def_prop_ro(
          "top_logprobs",
          [](const DrawnToken& self) {
            return self.logprobs ? AlternativesOf(*self.logprobs) : Alternatives();
          },
          "The likeliest tokens in its place: (id, logprob).")
      .def_ro("kv", &DrawnToken::kv,
              "The cache of its sequence, in which all tokens before it are stored.");

  nb::class_<HalvingEvent>(module, "HalvingEvent",
                           "Pages of one block stepped down to half of their width.")
      .def_ro("layer", &HalvingEvent::layer, "The block, from 0.")
      .def_ro("num_tokens", &HalvingEvent::num_tokens, "Length of the sequence when it happened.")
      .def_ro("from_bits", &HalvingEvent::from_bits)
      .def_prop_ro("to_bits", [](const HalvingEvent& self) { return self.from_bits / 2; })
      .def_prop_ro("pages",
                   [](const HalvingEvent& self) { return self.num_k_pages + self.num_v_pages; })
      .def_ro("microseconds", &HalvingEvent::duration_us);
}

}  // namespace pmkvq::python
