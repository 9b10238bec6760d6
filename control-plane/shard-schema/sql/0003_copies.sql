-- How far the copy of a table has come on the target of a move: written in the transaction that brings the rows.
CREATE TABLE switchyard.copies (
    move_id    text NOT NULL,
    -- Schema and name, quoted.
    table_name text NOT NULL,
    -- Values of the key, as text, up to which rows are here; null if all are.
    upto       text[],
    -- Rows that have been brought, their bytes as they travelled, and the sum of their hashes in hexadecimal.
    rows       bigint NOT NULL,
    bytes      bigint NOT NULL,
    hash       text NOT NULL,
    PRIMARY KEY (move_id, table_name)
);
