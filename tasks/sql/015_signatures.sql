-- The bill of materials of each release, kept in S3 beside its evidence, and the signatures over the release (docs/signing.md).
-- Like `releases`, both are only added to. A release signed again with another key has a second signature.
CREATE TABLE release_boms (
    release    integer PRIMARY KEY REFERENCES releases,
    created_at timestamptz NOT NULL DEFAULT now(),
    uri        text NOT NULL,
    sha256     text NOT NULL,
    bytes      bigint NOT NULL
);
CREATE TABLE release_signatures (
    release    integer NOT NULL REFERENCES releases,
    key_id     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    signed_by  text NOT NULL, -- `promote`, `roll_back`, or the person of `sign-release`; it is part of what is signed
    envelope   text NOT NULL, -- DSSE, as JSON
    PRIMARY KEY (release, key_id)
);
CREATE TRIGGER release_boms_are_final BEFORE UPDATE OR DELETE ON release_boms
    FOR EACH ROW EXECUTE FUNCTION releases_are_final();
CREATE TRIGGER release_boms_are_not_emptied BEFORE TRUNCATE ON release_boms
    FOR EACH STATEMENT EXECUTE FUNCTION releases_are_final();
CREATE TRIGGER release_signatures_are_final BEFORE UPDATE OR DELETE ON release_signatures
    FOR EACH ROW EXECUTE FUNCTION releases_are_final();
CREATE TRIGGER release_signatures_are_not_emptied BEFORE TRUNCATE ON release_signatures
    FOR EACH STATEMENT EXECUTE FUNCTION releases_are_final();
