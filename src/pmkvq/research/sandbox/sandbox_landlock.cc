#include "pmkvq/research/sandbox/sandbox_landlock.h"

#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

// Of the kernel's interface, which grows; older headers lack the later parts.
struct RulesetAttributes {
  uint64_t handled_access_fs;
  uint64_t handled_access_net;  // Version 4
  uint64_t scoped;              // Version 6
};
constexpr uint64_t kRefer = uint64_t{1} << 13;     // Version 2
constexpr uint64_t kTruncate = uint64_t{1} << 14;  // Version 3
constexpr uint64_t kAllTcp = 3;                    // Bind and connect.
constexpr uint64_t kAllScopes = 3;                 // Abstract sockets and signals.

constexpr uint64_t kRead = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
constexpr uint64_t kFileRights =
    LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | kTruncate;
// No folders and links, and no file can be removed: so the files directly in the folder are all
// that the program has written, and IsTooLarge counts all of it.
constexpr uint64_t kWrite = LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_MAKE_REG | kTruncate;
constexpr uint64_t kHandled =
    kRead | kWrite | kRefer | LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |
    LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_SOCK |
    LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM;

uint64_t KnownTo(int version, uint64_t rights) {
  if (version < 2) rights &= ~kRefer;
  if (version < 3) rights &= ~kTruncate;
  return rights;
}

[[noreturn]] void Fail(const std::string& what) {
  throw IoError("sandbox", "Landlock: cannot " + what + ": " + std::strerror(errno));
}

// A path that is not there needs no rule.
bool AddRule(int rules, const std::string& path, uint64_t rights) {
  const int target = open(path.c_str(), O_PATH | O_CLOEXEC);
  if (target < 0) return errno == ENOENT || errno == EACCES || errno == ENOTDIR;
  struct stat status = {};
  if (fstat(target, &status) == 0 && !S_ISDIR(status.st_mode)) rights &= kFileRights;
  landlock_path_beneath_attr rule = {};
  rule.allowed_access = rights;
  rule.parent_fd = target;
  const bool added =
      syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) == 0;
  const int error = errno;
  close(target);
  errno = error;
  return added;
}

}  // namespace

int LandlockVersion() {
  const long version =
      syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  return version < 0 ? 0 : static_cast<int>(version);
}

int MakeLandlockRules(const std::vector<std::string>& readable, const std::string& writable) {
  const int version = LandlockVersion();
  RulesetAttributes attributes = {};
  attributes.handled_access_fs = KnownTo(version, kHandled);
  if (version >= 4) attributes.handled_access_net = kAllTcp;
  if (version >= 6) attributes.scoped = kAllScopes;
  const size_t size = version >= 6 ? 24 : version >= 4 ? 16 : 8;
  const int rules = static_cast<int>(syscall(SYS_landlock_create_ruleset, &attributes, size, 0));
  if (rules < 0) Fail("make rules");
  bool added = AddRule(rules, writable, KnownTo(version, kRead | kWrite)) &&
               AddRule(rules, "/dev/null", kRead | LANDLOCK_ACCESS_FS_WRITE_FILE);
  for (const std::string& path : readable) added = added && AddRule(rules, path, kRead);
  if (!added) {
    const int error = errno;
    close(rules);
    errno = error;
    Fail("add rules");
  }
  return rules;
}

bool EnterLandlock(int rules) { return syscall(SYS_landlock_restrict_self, rules, 0) == 0; }

}  // namespace pmkvq
