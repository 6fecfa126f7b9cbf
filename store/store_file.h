// Is this file a run store? Answered before anything is opened for writing, so that a file which is not
// ours, is newer than we are, or is damaged gives one clear Problem and stays as it is.
#pragma once

#include <string>

#include "store/database.h"

namespace trainyard::store {

/// $TRAINYARD_STORE, else ./trainyard.sqlite.
std::string default_store_file();

/// The path without links and dots, so that two names of one file share one lock.
std::string canonical_store_file(const std::string& file);

/// Nothing when `file` begins as a store of ours that this version can read; else the Problem. Reads
/// only the first 100 bytes.
Problems check_header(const std::string& file);

/// Makes a new, empty store at `file` if there is none. It appears there whole or not at all. The caller
/// is in the entrance (run_lock.h).
Problems create_if_missing(const std::string& file);

/// Together with what SQLite keeps beside it.
void remove_with_side_files(const std::string& file);

/// Brings a store of an older Trainyard to this one's schema, at once or not at all. The caller is in the entrance.
void upgrade(Database& database);

/// Nothing when SQLite finds the pages in order. Files above 64 MiB are not read through: what we
/// append to never touches an old page, and reading checks each page that it visits.
Problems check_pages(const std::string& file);
/// Of a file that this process has just left so: as long as nobody changes it, it need not be read through again.
void pages_are_in_order(const std::string& file);

/// Opens `file`, which check_header has seen, also where nothing can be written beside it.
Result<Database> open_for_reading(const std::string& file);

/// Makes the store if there is none, checks it, upgrades it, and opens it. The caller is in the entrance.
Result<Database> open_for_writing(const std::string& file);

}  // namespace trainyard::store
