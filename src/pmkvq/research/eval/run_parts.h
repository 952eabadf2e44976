// The folder of an evaluation run that several shards write to (docs/formats.md): what is finished
// lies in responses.jsonl and in the shards' files below parts/, until these are merged.
#pragma once

#include <string>
#include <vector>

#include "pmkvq/io/part_files.h"
#include "pmkvq/research/eval/evaluation.h"

namespace pmkvq {

// FOLDER/parts/responses-IofN.jsonl and FOLDER/parts/unfinished-IofN.jsonl.
PartFiles ResponseParts(const std::string& folder);
PartFiles UnfinishedParts(const std::string& folder);

// All responses of a run, those of responses.jsonl first, then by part, each in the order of its
// file. A last line without its end is left out. A response that is there twice, since two jobs did
// it at once, counts once: the first. Needs no lock: a merge meanwhile changes nothing.
// Throws InvalidInput naming file, line and field, and both places of a response whose texts
// differ; IoError.
std::vector<Response> ReadResponses(const std::string& folder);

// Puts all parts into responses.jsonl, sorted by problem (bytes of its id) and index, and all
// unfinished responses into unfinished.jsonl, and removes the parts. Does nothing where there are
// none. A kill at any moment loses nothing: the files are replaced before the parts are removed.
// The caller holds the folder's exclusive lock. Throws as ReadResponses.
void MergeParts(const std::string& folder);

}  // namespace pmkvq
