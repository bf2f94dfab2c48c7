//! The table of platforms: where each has its metadata, and what of it is of use.
//!
//! Another platform is another row, in one of the three files. The names are Afterburn's (its `docs/usage/attributes.md`), the paths from there and
//! from the platforms' documentation. Paths that are absent are no error: machines differ in what they have.

mod documents;
mod drives;
mod texts;

/// A platform.
pub(super) struct Provider {
    /// Its id.
    pub(super) platform: &'static str,
    /// Its name in Afterburn's variables: `AFTERBURN_AWS_…`.
    pub(super) afterburn: &'static str,
    /// Its name in CoreOS's variables: `COREOS_EC2_…`.
    pub(super) coreos: &'static str,
    /// Where to look, the first that answers counts.
    pub(super) places: &'static [Place],
}

/// A service or a drive, and what it has.
pub(super) struct Place {
    pub(super) from: Source,
    pub(super) values: &'static [Value],
    pub(super) keys: Keys,
    pub(super) user_data: Option<UserData>,
}

/// Where documents come from.
pub(super) enum Source {
    Http(Http),
    /// The first disk with one of these labels.
    Drive(&'static [&'static str]),
    /// VMware's host: a document is a key.
    GuestInfo,
}

/// A metadata service.
pub(super) struct Http {
    /// Scheme and address; the first that answers counts. `%]` stands for each interface.
    pub(super) servers: &'static [&'static str],
    pub(super) token: Option<Token>,
    pub(super) headers: &'static [(&'static str, &'static str)],
    /// Whether it answers only ports that only root may use.
    pub(super) privileged: bool,
}

/// How a token is got by `PUT`, and shown.
pub(super) struct Token {
    pub(super) path: &'static str,
    /// The header of the request that says for how many seconds it should be good.
    pub(super) lifetime: &'static str,
    /// The header that it is shown in.
    pub(super) header: &'static str,
}

/// An attribute's name, its document, and the pointer into that (see `document::pick`). A name that ends in `*` takes
/// all that is found, and numbers them; of several rows with one name the first that gives something counts. What is
/// called IPV4 or IPV6 must be such an address, and loses its prefix length.
pub(super) type Value = (&'static str, &'static str, &'static str);

/// Where the SSH keys are.
pub(super) enum Keys {
    Nowhere,
    /// A document and a pointer: each text has one key or several lines.
    At(&'static str, &'static str),
    /// EC2's way: a list of `0=name`, and a document `0/openssh-key` below it.
    Listed(&'static str),
    /// Google's way: lines of `user:key` in the attributes of instance and project.
    Google(&'static str),
}

/// Where the user data is: the first of the documents that there is.
pub(super) struct UserData {
    pub(super) documents: &'static [&'static str],
    pub(super) base64: bool,
}

impl Provider {
    /// Whether the platform has SSH keys.
    pub(super) fn has_keys(&self) -> bool {
        let mut places = self.places.iter();
        places.any(|place| !matches!(place.keys, Keys::Nowhere))
    }
}

/// All platforms that have metadata.
pub(super) fn all() -> impl Iterator<Item = &'static Provider> {
    let tables = [documents::TABLE, drives::TABLE, texts::TABLE];
    tables.into_iter().flatten()
}

/// A service without token and headers.
const fn plain(servers: &'static [&'static str]) -> Http {
    Http {
        servers,
        token: None,
        headers: &[],
        privileged: false,
    }
}

/// The address that most platforms use.
const USUAL: &[&str] = &["http://169.254.169.254"];

/// The documents of a drive in OpenStack's form.
pub(super) const OPENSTACK_DRIVE: &str = "openstack/latest/meta_data.json";
const EC2_DRIVE: &str = "ec2/latest/meta-data.json";

/// Labels of drives in OpenStack's and in NoCloud's form.
pub(super) const CONFIG_DRIVE: &[&str] = &["config-2", "CONFIG-2"];
pub(super) const NO_CLOUD: &[&str] = &["cidata", "CIDATA"];

/// What a drive in OpenStack's form has.
const fn config_drive(values: &'static [Value]) -> Place {
    Place {
        from: Source::Drive(CONFIG_DRIVE),
        values,
        keys: Keys::At(OPENSTACK_DRIVE, "/public_keys/*"),
        user_data: Some(UserData {
            documents: &["openstack/latest/user_data"],
            base64: false,
        }),
    }
}

/// What a drive in NoCloud's form has.
const fn no_cloud(values: &'static [Value], keys: Keys) -> Place {
    Place {
        from: Source::Drive(NO_CLOUD),
        values,
        keys,
        user_data: Some(UserData {
            documents: &["user-data", "vendor-data"],
            base64: false,
        }),
    }
}
