-- TRUNCATE does not fire the row trigger of the ledger; it is refused as UPDATE and DELETE are.
CREATE TRIGGER releases_are_kept BEFORE TRUNCATE ON releases FOR EACH STATEMENT EXECUTE FUNCTION releases_are_final();
