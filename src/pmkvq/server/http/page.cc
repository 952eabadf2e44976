#include "pmkvq/server/http/page.h"

#include <fmt/format.h>
#include <openssl/evp.h>
#include <openssl/sha.h>

#include <string_view>

#include "pmkvq/base/check.h"
#include "pmkvq/io/json.h"
#include "pmkvq/server/http/service.h"

namespace pmkvq::embedded {
extern const std::string_view kChatPage;
}  // namespace pmkvq::embedded

namespace pmkvq::server {
namespace {

// 'sha256-...' of what stands between two tags of the page.
std::string HashOf(std::string_view open, std::string_view close) {
  const std::string_view page = embedded::kChatPage;
  const size_t begin = page.find(open);
  const size_t end = page.find(close);
  PMKVQ_CHECK(begin != std::string_view::npos && end != std::string_view::npos);
  const std::string_view text = page.substr(begin + open.size(), end - begin - open.size());
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  unsigned char base64[4 * ((SHA256_DIGEST_LENGTH + 2) / 3) + 1];
  EVP_EncodeBlock(base64, digest, SHA256_DIGEST_LENGTH);
  return fmt::format("'sha256-{}'", reinterpret_cast<const char*>(base64));
}

}  // namespace

HttpReply ChatPage() {
  static const std::string policy = fmt::format(
      "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; base-uri 'none'; "
      "form-action 'none'; frame-ancestors 'none'",
      HashOf("<script>", "</script>"), HashOf("<style>", "</style>"));
  HttpReply reply;
  reply.content_type = "text/html; charset=utf-8";
  reply.body = embedded::kChatPage;
  reply.headers.emplace_back("Content-Security-Policy", policy);
  reply.headers.emplace_back("Referrer-Policy", "no-referrer");
  return reply;
}

std::string Service::SlotsText() const {
  const EngineSnapshot now = engine_thread_->snapshot();
  JsonWriter json;
  json.BeginArray();
  for (int64_t i = 0; i < options_.num_slots; ++i) {
    const bool is_busy = i < std::ssize(now.sequences);
    json.BeginObject().Key("id").Int(i).Key("n_ctx").Int(context_->max_len);
    json.Key("is_processing").Bool(is_busy);
    if (is_busy) json.Key("n_past").Int(now.sequences[static_cast<size_t>(i)].num_tokens);
    json.EndObject();
  }
  json.EndArray();
  return json.text();
}

std::string Service::KvText() const {
  const EngineSnapshot now = engine_thread_->snapshot();
  JsonWriter json;
  const auto write_pages = [&](const PagesPerWidth& pages) {
    json.Key("pages").BeginObject();
    for (const int bits : kWidths) {
      json.Key(std::to_string(bits)).Int(pages[WidthIndex(bits)]);
    }
    json.EndObject();
  };
  json.BeginObject().Key("pool_bytes").Int(kv_pool_bytes_).Key("used_bytes").Int(now.kv_bytes);
  write_pages(now.kv_pages);
  json.Key("mode").String(now.pool.bytes > 0 ? "pool" : "isolated");
  json.Key("water_level").Number(now.pool.water_level);
  json.Key("expected_bytes").Int(static_cast<int64_t>(now.stats.expected_kv_bytes));
  json.Key("prefix").BeginObject().Key("bytes").Int(now.pool.prefix_bytes);
  json.Key("tokens").Int(now.pool.prefix_tokens).Key("hits").Int(now.pool.prefix_hits);
  json.Key("hit_tokens").Int(now.pool.prefix_hit_tokens).EndObject();
  json.Key("preemptions").Int(now.stats.num_preemptions);
  json.Key("running").Int(now.stats.num_running).Key("waiting").Int(now.stats.num_waiting);
  json.Key("generated_tokens").Int(metrics_.generated_tokens);
  json.Key("halved_pages").Int(now.num_halvings);
  json.Key("requests").BeginArray();
  for (const SequenceSnapshot& one : now.sequences) {
    json.BeginObject().Key("id").String(fmt::format("{}.{}", one.generation, one.choice));
    json.Key("tokens").Int(one.num_tokens).Key("bytes").Int(one.bytes);
    json.Key("budget_bytes").Int(one.budget_bytes);
    write_pages(one.pages);
    json.Key("bits_by_age").BeginArray();
    for (const float bits : one.bits_by_age) {
      json.Number(static_cast<double>(static_cast<int64_t>(bits * 100 + 0.5F)) / 100);
    }
    json.EndArray().EndObject();
  }
  json.EndArray().EndObject();
  return json.text();
}

}  // namespace pmkvq::server
