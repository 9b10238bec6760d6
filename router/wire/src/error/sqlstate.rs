//! Codes by the names of `src/backend/utils/errcodes.txt`, without the `ERRCODE_` prefix and shortened where
//! the full name would say the same twice.

use super::SqlState;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`")]
            $(#[$doc])*
            pub const $name: SqlState = SqlState(*$code);
        )*

        #[cfg(test)]
        pub(super) const ALL: &[SqlState] = &[$($name),*];
    };
}

codes! {
    SUCCESSFUL_COMPLETION = b"00000";
    WARNING = b"01000";
    CONNECTION_EXCEPTION = b"08000";
    SQLCLIENT_UNABLE = b"08001";
    CONNECTION_DOES_NOT_EXIST = b"08003";
    REJECTED = b"08004";
    CONNECTION_FAILURE = b"08006";
    PROTOCOL_VIOLATION = b"08P01";
    FEATURE_NOT_SUPPORTED = b"0A000";
    CHARACTER_NOT_IN_REPERTOIRE = b"22021";
    INVALID_PARAMETER_VALUE = b"22023";
    ACTIVE_SQL_TRANSACTION = b"25001";
    READ_ONLY_SQL_TRANSACTION = b"25006";
    NO_ACTIVE_SQL_TRANSACTION = b"25P01";
    IN_FAILED_SQL_TRANSACTION = b"25P02";
    IDLE_IN_TRANSACTION = b"25P03";
    TRANSACTION_TIMEOUT = b"25P04";
    INVALID_SQL_STATEMENT_NAME = b"26000";
    INVALID_AUTHORIZATION = b"28000";
    INVALID_PASSWORD = b"28P01";
    INVALID_CURSOR_NAME = b"34000";
    INVALID_SAVEPOINT = b"3B001";
    INVALID_CATALOG_NAME = b"3D000";
    SERIALIZATION_FAILURE = b"40001";
    INSUFFICIENT_PRIVILEGE = b"42501";
    SYNTAX_ERROR = b"42601";
    UNDEFINED_OBJECT = b"42704";
    DUPLICATE_CURSOR = b"42P03";
    DUPLICATE_PREPARED_STATEMENT = b"42P05";
    INSUFFICIENT_RESOURCES = b"53000";
    OUT_OF_MEMORY = b"53200";
    TOO_MANY_CONNECTIONS = b"53300";
    CONFIGURATION_LIMIT_EXCEEDED = b"53400";
    PROGRAM_LIMIT_EXCEEDED = b"54000";
    OBJECT_NOT_IN_PREREQUISITE_STATE = b"55000";
    CANT_CHANGE_RUNTIME_PARAM = b"55P02";
    LOCK_NOT_AVAILABLE = b"55P03";
    OPERATOR_INTERVENTION = b"57000";
    QUERY_CANCELED = b"57014";
    ADMIN_SHUTDOWN = b"57P01";
    CRASH_SHUTDOWN = b"57P02";
    CANNOT_CONNECT_NOW = b"57P03";
    DATABASE_DROPPED = b"57P04";
    IDLE_SESSION_TIMEOUT = b"57P05";
    SYSTEM_ERROR = b"58000";
    IO_ERROR = b"58030";
    CONFIG_FILE_ERROR = b"F0000";
    INTERNAL = b"XX000";
    DATA_CORRUPTED = b"XX001";
}
