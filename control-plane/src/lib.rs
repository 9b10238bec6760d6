//! The control plane of Switchyard: catalog store and migrations, REST API.
