-- Schema 1. Read with: sqlite3 -readonly keyhold.db
--
-- Times are integer microseconds since 1970-01-01T00:00:00Z, in columns that
-- end in _us. Enums are the names of their proto values. Refs are 32 lower-case
-- hexadecimal digits, as logs and Ref.String show them.

PRAGMA application_id = 0x4b594844; -- "KYHD": tells a foreign database from ours

CREATE TABLE schema_history (
    version    INTEGER NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    program    TEXT    NOT NULL, -- who brought the schema here; shown to older programs
    applied_us INTEGER NOT NULL
) STRICT;

CREATE TABLE installation (
    one          INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    instance     TEXT    NOT NULL CHECK (length(instance) = 8 AND instance NOT GLOB '*[^0-9a-f]*'),
    created_us   INTEGER NOT NULL,
    last_tick_us INTEGER -- NULL until the first tick
) STRICT;

CREATE TABLE keys (
    id                  TEXT    NOT NULL PRIMARY KEY,
    account             TEXT    NOT NULL,
    region              TEXT    NOT NULL,
    key_store           TEXT    NOT NULL, -- '' is the region's default token
    spec                TEXT    NOT NULL,
    usage               TEXT    NOT NULL,
    state               TEXT    NOT NULL,
    description         TEXT    NOT NULL,
    created_us          INTEGER NOT NULL,
    deletion_us         INTEGER, -- NULL but in KEY_STATE_PENDING_DELETION
    pending_window_days INTEGER NOT NULL,
    destroying          INTEGER NOT NULL CHECK (destroying IN (0, 1)),
    revision            INTEGER NOT NULL CHECK (revision >= 1)
) STRICT;

CREATE TABLE tags (
    key_id    TEXT    NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    tag_key   TEXT    NOT NULL,
    tag_value TEXT    NOT NULL,
    position  INTEGER NOT NULL, -- the owner's order
    PRIMARY KEY (key_id, tag_key)
) STRICT, WITHOUT ROWID;

CREATE TABLE key_versions (
    ref           TEXT    NOT NULL PRIMARY KEY CHECK (length(ref) = 32 AND ref NOT GLOB '*[^0-9a-f]*'),
    key_id        TEXT    NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    position      INTEGER NOT NULL, -- 0 is the oldest; the greatest encrypts
    material_id   TEXT    NOT NULL,
    locator_id    BLOB    NOT NULL, -- CKA_ID
    locator_label TEXT    NOT NULL, -- CKA_LABEL
    locator_spec  TEXT    NOT NULL,
    locator_usage TEXT    NOT NULL,
    custody       TEXT    NOT NULL,
    created_us    INTEGER NOT NULL,
    public_key    BLOB, -- DER of the SubjectPublicKeyInfo; NULL for secret keys
    UNIQUE (key_id, position)
) STRICT, WITHOUT ROWID;

-- Apart from key_versions, because a write of a key replaces those rows, and a
-- count that fell back to zero would void the 2^32 guard of AES-GCM.
CREATE TABLE seal_counts (
    ref    TEXT    NOT NULL PRIMARY KEY,
    key_id TEXT    NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    count  INTEGER NOT NULL CHECK (count >= 0)
) STRICT, WITHOUT ROWID;

CREATE INDEX seal_counts_by_key ON seal_counts (key_id);

CREATE TABLE aliases (
    account    TEXT    NOT NULL,
    region     TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    key_id     TEXT    NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL,
    revision   INTEGER NOT NULL CHECK (revision >= 1),
    PRIMARY KEY (account, region, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX aliases_by_key ON aliases (key_id);
