-- Schema 2: access keys of principals. Principals are those of the configuration.

CREATE TABLE access_keys (
    id                TEXT    NOT NULL PRIMARY KEY,
    principal         TEXT    NOT NULL, -- ARN
    active            INTEGER NOT NULL CHECK (active IN (0, 1)),
    created_us        INTEGER NOT NULL,
    sealed_secret     BLOB    NOT NULL CHECK (length(sealed_secret) > 0), -- by the seal key, in the token
    last_used_us      INTEGER, -- NULL until the first use; written once an hour at most
    last_used_region  TEXT    NOT NULL DEFAULT '',
    last_used_service TEXT    NOT NULL DEFAULT '',
    revision          INTEGER NOT NULL CHECK (revision >= 1)
) STRICT;
