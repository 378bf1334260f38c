//! Who may read what: asked of the API server for every request, so that a permission taken away is gone at once.

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};

/// Audience of the tokens that are taken: no other token, however powerful, is of use here.
const AUDIENCE: &str = "karst-read";
/// Group of the virtual resources.
const GROUP: &str = "karst.dev";

/// Asks the API server.
pub struct Access {
    client: Client,
}

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("no valid token of audience {AUDIENCE}")]
    Unknown,
    #[error(
        "{user} may not list {resource}.{GROUP} {place}: bind it to ClusterRole karst-reader, there or everywhere"
    )]
    Denied {
        user: String,
        resource: String,
        place: String,
    },
    #[error("the API server cannot be asked who may read this")]
    Unavailable(#[source] kube::Error),
}

impl Access {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Whether the owner of `token` may list `resource` in `namespace`; in all without one.
    pub async fn check(
        &self,
        token: &str,
        resource: &str,
        namespace: Option<&str>,
    ) -> Result<(), AccessError> {
        let user = self.user(token).await?;
        self.may(user, resource, namespace).await
    }

    /// Which of these namespaces the owner of `token` may list `resource` in; `None`: all that there are.
    pub async fn visible(
        &self,
        token: &str,
        resource: &str,
        namespaces: &[String],
    ) -> Result<Option<Vec<String>>, AccessError> {
        let user = self.user(token).await?;
        match self.may(user.clone(), resource, None).await {
            Ok(()) => return Ok(None),
            Err(AccessError::Denied { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut visible = Vec::new();
        for namespace in namespaces {
            match self.may(user.clone(), resource, Some(namespace)).await {
                Ok(()) => visible.push(namespace.clone()),
                Err(AccessError::Denied { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(visible))
    }

    async fn may(
        &self,
        user: UserInfo,
        resource: &str,
        namespace: Option<&str>,
    ) -> Result<(), AccessError> {
        let name = user.username.clone().unwrap_or_default();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username,
                groups: user.groups,
                uid: user.uid,
                extra: user.extra,
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    resource: Some(resource.to_owned()),
                    verb: Some("list".to_owned()),
                    namespace: namespace.map(str::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = Api::<SubjectAccessReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(AccessError::Unavailable)?;
        if answer.status.is_some_and(|status| status.allowed) {
            return Ok(());
        }
        let place = namespace.map_or_else(
            || "in all namespaces".to_owned(),
            |namespace| format!("in namespace {namespace}"),
        );
        Err(AccessError::Denied {
            user: name,
            resource: resource.to_owned(),
            place,
        })
    }

    async fn user(&self, token: &str) -> Result<UserInfo, AccessError> {
        if token.is_empty() {
            return Err(AccessError::Unknown);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(AccessError::Unavailable)?;
        let status = answer.status.unwrap_or_default();
        let audiences = status.audiences.unwrap_or_default();
        let good = status.authenticated == Some(true)
            && audiences.iter().any(|audience| audience == AUDIENCE);
        status.user.filter(|_user| good).ok_or(AccessError::Unknown)
    }
}
