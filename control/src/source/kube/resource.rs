//! The collections that are watched, and the requests for them.

use kube::api::{ListParams, WatchParams};
use kube::core::Request;

use super::Scope;
use crate::model::Kind;

/// One collection of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// The name in paths and RBAC rules.
    pub(super) plural: &'static str,
    pub(super) necessity: Necessity,
    labels: Option<&'static str>,
    fields: Option<String>,
}

/// A collection, as far as the store tells it from others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Collection {
    pub(super) kind: Kind,
    /// Its name in findings.
    pub(super) plural: &'static str,
    pub(super) necessity: Necessity,
}

/// Whether anything can be served without a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Necessity {
    /// Nothing is served before it was read once.
    Required,
    /// Services go on without it; what is different then, in words.
    Optional { without: &'static str },
}

impl Resource {
    /// The collections that are watched (P101). Endpoints are not: the cluster's mirroring controller makes slices of
    /// them (P117). Of the Nodes only this one is.
    pub(super) fn all(scope: Scope, node_name: Option<&str>) -> Vec<Self> {
        let unless = |label| if scope == Scope::Served { Some(label) } else { None };
        let of =
            |kind, plural| Self { kind, plural, necessity: Necessity::Required, labels: None, fields: None };
        let mut all = vec![
            Self { labels: unless(NO_OTHER_PROXY), ..of(Kind::Service, "services") },
            Self { labels: unless(NOT_HEADLESS), ..of(Kind::EndpointSlice, "endpointslices") },
            // Kubernetes has them since 1.33.
            Self {
                necessity: Necessity::Optional { without: NO_CIDRS },
                ..of(Kind::ServiceCidr, "servicecidrs")
            },
        ];
        if let Some(name) = node_name {
            // P202: Node names are lower case.
            let fields = Some(format!("metadata.name={}", name.to_lowercase()));
            let necessity = Necessity::Optional { without: NO_NODE };
            all.push(Self { fields, necessity, ..of(Kind::Node, "nodes") });
        }
        all
    }

    /// What the store needs to know of it.
    pub(super) const fn collection(&self) -> Collection {
        Collection { kind: self.kind, plural: self.plural, necessity: self.necessity }
    }

    /// The API group, empty for the oldest one.
    pub(super) fn group(&self) -> &'static str {
        self.kind.api_version().rsplit_once('/').map_or("", |(group, _)| group)
    }

    /// The request for one page of a consistent list.
    pub(super) fn list(&self, continue_token: Option<String>) -> ApiRequest {
        let params = ListParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            limit: Some(PAGE_OBJECTS),
            continue_token,
            ..ListParams::default()
        };
        self.request().list(&params).expect("parameters of our own making are valid")
    }

    /// The request to watch for changes since `version`; without one, for a stream of the whole collection, consistent,
    /// and then its changes. The server ends the stream after `seconds`.
    pub(super) fn watch(&self, version: Option<&str>, seconds: u32) -> ApiRequest {
        let params = WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events: version.is_none(),
        };
        // An empty version means the newest state. Version "0" means any, which a server may answer from an old cache:
        // endpoints that are gone could come back.
        let request = self.request().watch(&params, version.unwrap_or(""));
        request.expect("parameters of our own making are valid")
    }

    fn request(&self) -> Request {
        let version = self.kind.api_version();
        let root = if version.contains('/') { "apis" } else { "api" };
        Request::new(format!("/{root}/{version}/{}", self.plural))
    }
}

/// A request without a body.
pub(super) type ApiRequest = http::Request<Vec<u8>>;

/// P506
const NO_CIDRS: &str = "packets to cluster IPs that no Service has are left to the kernel";
/// P209, P305, P601
const NO_NODE: &str = "this machine's zone and pod ranges are unknown, and its primary addresses are the first of its interfaces";
/// P102: the presence of the label counts, whatever its value.
const NO_OTHER_PROXY: &str = "!service.kubernetes.io/service-proxy-name";
/// P103: likewise.
const NOT_HEADLESS: &str = "!service.kubernetes.io/headless";
/// As in client-go.
const PAGE_OBJECTS: u32 = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p101_only_what_counts_is_asked_for() {
        let asked = |scope, node| -> Vec<String> {
            let all = Resource::all(scope, node);
            // kube-core begins a query with an empty pair.
            let path = |resource: &Resource| resource.list(None).uri().to_string().replace("?&", "?");
            all.iter().map(path).collect()
        };
        let without = |label| format!("labelSelector=%21service.kubernetes.io%2F{label}");
        assert_eq!(
            asked(Scope::Served, Some("Edge-1")),
            [
                format!("/api/v1/services?{}&limit=500", without("service-proxy-name")),
                format!("/apis/discovery.k8s.io/v1/endpointslices?{}&limit=500", without("headless")),
                "/apis/networking.k8s.io/v1/servicecidrs?limit=500".into(),
                "/api/v1/nodes?fieldSelector=metadata.name%3Dedge-1&limit=500".into(),
            ]
        );
        // Objects that a label excludes are left out of the tables later: DNS needs them.
        assert_eq!(
            asked(Scope::Named, None),
            [
                "/api/v1/services?limit=500",
                "/apis/discovery.k8s.io/v1/endpointslices?limit=500",
                "/apis/networking.k8s.io/v1/servicecidrs?limit=500",
            ]
        );
    }
}
