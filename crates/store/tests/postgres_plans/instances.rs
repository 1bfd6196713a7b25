//! Starts of instances, and the lists that they are found in.

use runtara_domain::{Cursor, ImageDigest, ImageId, LabelFilter, Status, Timestamp};
use runtara_store::postgres::PostgresStore;
use runtara_store::{
    Expired, InstanceFilter, InstanceOrder, MetricsQuery, Owners, PageRequest, PageStart,
    Store as _,
};

use crate::case::{Case, PAGES};
use crate::filled::{id, tenant};
use crate::node::Node;

/// Two pages of ended instances whose time is over. Those that are meant are few among those that are looked at.
async fn expired(store: &PostgresStore, owners: Owners) {
    let mut demand = Expired {
        owners,
        statuses: vec![Status::Failed],
        ended_ms: 86_400_000,
        after: None,
        limit: 100,
    };
    for _ in 0..2 {
        let page = store.expired_instances(&demand).await.unwrap();
        assert!(page.more && page.reached.is_some());
        demand.after = page.reached;
    }
}

async fn list(store: &PostgresStore, filter: InstanceFilter, order: InstanceOrder) {
    let after = Cursor {
        value: Some(1_600_050_000_000),
        key: String::new(),
    };
    let first = PageRequest::first(20);
    let next = PageRequest {
        start: PageStart::After(after),
        limit: 20,
    };
    let page = store.list_instances(&filter, order, &first).await.unwrap();
    assert!(!page.rows.is_empty(), "{filter:?}");
    store.list_instances(&filter, order, &next).await.unwrap();
}

fn of_tenant(status: Option<Status>) -> InstanceFilter {
    InstanceFilter {
        tenant_id: Some(tenant()),
        status,
        ..InstanceFilter::default()
    }
}

pub(crate) const CASES: &[Case] = &[
    Case {
        what: "start",
        index: "runtara_images_pkey",
        entries: 12,
        call: |store, n| {
            Box::pin(async move {
                let node = Node::make(store).await;
                node.start(&format!("started-{n}")).await;
            })
        },
    },
    Case {
        what: "instance",
        index: "runtara_instances_pkey",
        entries: 8,
        call: |store, n| {
            Box::pin(async move {
                assert!(store.instance(&id(n + 1)).await.unwrap().is_some());
                assert!(store.instance_values(&id(n + 1)).await.unwrap().is_some());
            })
        },
    },
    Case {
        what: "ended instances whose time is over",
        index: "runtara_instances_finished",
        entries: 210,
        call: |store, _| Box::pin(expired(store, Owners::AllBut(vec![tenant()]))),
    },
    Case {
        what: "ended instances of a tenant whose time is over",
        index: "runtara_instances_tenant_finished",
        entries: 210,
        call: |store, _| Box::pin(expired(store, Owners::Only(tenant()))),
    },
    Case {
        what: "images that are unused",
        index: "runtara_images_base",
        // Each of them is a base: that of another, or its own.
        entries: 25_000,
        call: |store, _| {
            Box::pin(async move {
                let unused = store.unused_images(86_400_000, 10).await.unwrap();
                assert!(unused.is_empty());
            })
        },
    },
    Case {
        what: "list",
        index: "runtara_instances_created",
        entries: PAGES,
        call: |store, _| Box::pin(list(store, InstanceFilter::default(), Default::default())),
    },
    Case {
        what: "list of a tenant",
        index: "runtara_instances_tenant_created",
        entries: PAGES,
        call: |store, _| {
            Box::pin(list(
                store,
                of_tenant(None),
                InstanceOrder::CreatedAscending,
            ))
        },
    },
    Case {
        what: "list by status",
        index: "runtara_instances_status_created",
        entries: PAGES,
        call: |store, _| {
            let filter = InstanceFilter {
                status: Some(Status::Failed),
                ..InstanceFilter::default()
            };
            Box::pin(list(store, filter, Default::default()))
        },
    },
    Case {
        what: "list of a tenant by status",
        index: "runtara_instances_tenant_status_created",
        entries: PAGES,
        call: |store, _| {
            let filter = of_tenant(Some(Status::Completed));
            Box::pin(list(store, filter, Default::default()))
        },
    },
    Case {
        what: "list by end",
        index: "runtara_instances_finished",
        entries: PAGES,
        call: |store, _| {
            let order = InstanceOrder::FinishedDescending;
            Box::pin(list(store, InstanceFilter::default(), order))
        },
    },
    Case {
        what: "list of a tenant by end",
        index: "runtara_instances_tenant_finished",
        entries: PAGES,
        call: |store, _| {
            Box::pin(list(
                store,
                of_tenant(None),
                InstanceOrder::FinishedAscending,
            ))
        },
    },
    Case {
        what: "list of an image",
        index: "runtara_instances_image_created",
        entries: PAGES,
        call: |store, _| {
            let filter = InstanceFilter {
                image_id: Some(ImageId::new("image-7").unwrap()),
                ..InstanceFilter::default()
            };
            Box::pin(list(store, filter, Default::default()))
        },
    },
    Case {
        what: "list by the beginning of an image's name",
        index: "runtara_instances_image_created",
        entries: PAGES,
        call: |store, _| {
            let filter = InstanceFilter {
                image_name_prefix: Some("name-77".to_owned()),
                ..of_tenant(None)
            };
            Box::pin(async move {
                store
                    .list_instances(&filter, Default::default(), &PageRequest::first(20))
                    .await
                    .unwrap();
            })
        },
    },
    Case {
        what: "list by label",
        index: "runtara_instance_labels_found",
        entries: 600,
        call: |store, n| {
            let filter = InstanceFilter {
                labels: vec![LabelFilter::parse(&format!("batch={}", n + 900)).unwrap()],
                ..InstanceFilter::default()
            };
            Box::pin(async move {
                let page = PageRequest::first(20);
                let found = store
                    .list_instances(&filter, Default::default(), &page)
                    .await
                    .unwrap();
                assert_eq!(found.total.count, 50);
            })
        },
    },
    Case {
        what: "metrics",
        index: "runtara_instances_tenant_finished",
        entries: 2_500,
        call: |store, _| {
            let query = MetricsQuery {
                tenant_id: tenant(),
                start: Timestamp(1_600_000_000_000),
                end: Timestamp(1_600_086_400_000),
                bucket_ms: 3_600_000,
            };
            Box::pin(async move {
                assert!(!store.tenant_metrics(&query).await.unwrap().is_empty());
            })
        },
    },
    Case {
        what: "use of an image",
        index: "runtara_instances_image_used",
        entries: 1_300,
        call: |store, _| {
            Box::pin(async move {
                let image = ImageId::new("image-70").unwrap();
                store.delete_image(&image).await.unwrap();
            })
        },
    },
    Case {
        what: "need of content",
        index: "runtara_images_base",
        entries: 2,
        call: |store, n| {
            Box::pin(async move {
                let digest = ImageDigest::of(format!("nobody's {n}").as_bytes());
                assert!(!store.is_content_needed(&digest).await.unwrap());
            })
        },
    },
];
