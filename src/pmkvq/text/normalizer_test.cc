#include "pmkvq/text/normalizer.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <utf8proc.h>

#include <cstdlib>

#include "pmkvq/base/error.h"
#include "pmkvq/text/utf8.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

// utf8proc's own NFC, as the oracle.
std::string OracleNfc(const std::string& text) {
  utf8proc_uint8_t* result = nullptr;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &result, options);
  EXPECT_GE(length, 0);
  std::string nfc(reinterpret_cast<const char*>(result), static_cast<size_t>(length));
  std::free(result);
  return nfc;
}

TEST(Nfc, ComposesAndReorders) {
  EXPECT_EQ(Nfc(""), "");
  EXPECT_EQ(Nfc("plain"), "plain");
  EXPECT_EQ(Nfc("e\u0301"), "é");
  EXPECT_EQ(Nfc("\u212b"), "Å");                     // The Angstrom sign.
  EXPECT_EQ(Nfc("\u1100\u1161\u11a8"), "각");        // Hangul.
  EXPECT_EQ(Nfc("q\u0307\u0323"), "q\u0323\u0307");  // Canonical order.
  EXPECT_EQ(Nfc("\u0958"), "\u0915\u093c");          // Excluded from composition.
  EXPECT_EQ(Nfc(std::string("e\u0301\0e", 5)), std::string("é\0e", 4));
}

TEST(Nfc, EqualsUtf8procOnRandomText) {
  EXPECT_TRUE(rc::check("Nfc", [] {
    const auto points = *rc::gen::container<std::vector<uint32_t>>(rc::gen::oneOf(
        rc::gen::inRange<uint32_t>(0x20, 0x250), rc::gen::inRange<uint32_t>(0x300, 0x370),
        rc::gen::inRange<uint32_t>(0x900, 0xE00), rc::gen::inRange<uint32_t>(0x1100, 0x1200),
        rc::gen::inRange<uint32_t>(0xAC00, 0xD7A4), rc::gen::inRange<uint32_t>(0xF900, 0xFFFE),
        rc::gen::inRange<uint32_t>(0x1D100, 0x1D200)));
    std::string text;
    for (const uint32_t point : points) AppendUtf8(point, &text);
    RC_ASSERT(Nfc(text) == OracleNfc(text));
  }));
}

TEST(Nfc, LongRunsOfMarksTakeNoQuadraticTime) {
  std::string text = "a";
  for (int i = 0; i < 300'000; ++i) text += i % 2 == 0 ? "\u0301" : "\u0323";
  EXPECT_EQ(Nfc(text).substr(0, 5), "ạ\u0323");  // a with dot below, then the other dots.
}

TEST(Normalizer, NullKeepsAndNfcNormalises) {
  const auto make = [](const std::string& json) {
    return Normalizer(JsonValue::Parse(json, "t.json"));
  };
  EXPECT_EQ(make("null").Normalize("e\u0301"), "e\u0301");
  EXPECT_EQ(make(R"({"type":"NFC"})").Normalize("e\u0301"), "é");
  EXPECT_EQ(make(R"({"type":"Sequence","normalizers":[]})").Normalize("e\u0301"), "e\u0301");
  EXPECT_EQ(make(R"({"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"NFC"}]})")
                .Normalize("e\u0301"),
            "é");
  ExpectError<Unsupported>([&] { make(R"({"type":"Lowercase"})"); },
                           {"t.json", "Lowercase", "NFC"});
  ExpectError<Unsupported>(
      [&] { make(R"({"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"NFKC"}]})"); },
      {"normalizers[1]", "NFKC"});
  ExpectError<InvalidInput>([&] { make(R"({"type":"Sequence","normalizers":{}})"); },
                            {"normalizers", "an array"});
}

}  // namespace
}  // namespace pmkvq
