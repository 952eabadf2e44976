// Which files a sandboxed program may open: a Landlock rule set.
#pragma once

#include <string>
#include <vector>

namespace pmkvq {

// The kernel's version of Landlock; 0 when it has none or it is switched off.
int LandlockVersion();

// A rule set: `readable` files and folders (those that are there) with all below them may be read,
// files may be made and changed in the folder `writable`, and nothing else may be opened;
// where the version allows, also no TCP and no signals to others. Returns a descriptor that the
// caller closes. LandlockVersion() has to be at least 1. Throws IoError.
int MakeLandlockRules(const std::vector<std::string>& readable, const std::string& writable);

// Confines the calling thread. No memory is allocated. False with errno where the kernel refuses.
bool EnterLandlock(int rules);

}  // namespace pmkvq
