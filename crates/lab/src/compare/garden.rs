//! Garden servers: wardian's own, started for a turn, or one that is there.

use super::goods::Goods;
use crate::code::Sample;
use crate::drive::{Instance, Wish};
use crate::image::{HOME, USER};
use crate::local::{Extras, LocalServer};
use anyhow::{Context as _, Result, ensure};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use wardian_garden::{Client, ErrorKind};

/// A Garden server with the containers that were made on it.
#[derive(Debug)]
pub(super) struct Garden {
    client: Client,
    /// A server of our own.
    local: Option<LocalServer>,
    /// Path of the image's tar.
    image: String,
    made: RefCell<BTreeMap<String, Option<Rc<Instance>>>>,
}

impl Garden {
    /// Starts a server of this program, with its store below `above`.
    pub(super) async fn start(program: &Path, above: &Path, image: &Path) -> Result<Self> {
        let args = ["--network", "none"].map(str::to_owned).into();
        let local = LocalServer::start_with(program, Some(above), Extras { args, namespace: None }).await?;
        Ok(Self {
            client: local.client()?,
            local: Some(local),
            image: image.display().to_string(),
            made: RefCell::default(),
        })
    }

    /// Uses a server that is there.
    pub(super) fn at(address: &str, image: &Path) -> Result<Self> {
        let client = Client::new(address).context("--garden")?;
        Ok(Self { client, local: None, image: image.display().to_string(), made: RefCell::default() })
    }

    pub(super) async fn create(&self, name: &str, full: Option<&Goods>) -> Result<()> {
        let image = match full {
            None => self.image.clone(),
            // A platform signs the URL of the code for each instance.
            Some(goods) => goods.droplet.as_ref().context("there is no layer")?.image(&self.image, name)?,
        };
        // Noted first: an interrupted create may still create the container.
        self.made.borrow_mut().insert(name.to_owned(), None);
        let (client, base) = (self.client.clone(), self.image.clone());
        let instance = Instance::create_on(client, name.to_owned(), image, base, Wish::default()).await?;
        self.made.borrow_mut().insert(name.to_owned(), Some(Rc::new(instance)));
        Ok(())
    }

    fn instance(&self, name: &str) -> Result<Rc<Instance>> {
        self.made.borrow().get(name).cloned().flatten().with_context(|| format!("{name} was not created"))
    }

    pub(super) async fn stream_in(&self, name: &str, goods: &Goods) -> Result<()> {
        let (tar, length) = (std::io::Cursor::new(goods.tar.clone()), goods.tar.len() as u64);
        let streamed = self.client.stream_in(name, USER, HOME, tar, Some(length)).await;
        streamed.with_context(|| format!("stream the code into {name}"))
    }

    pub(super) async fn start_app(&self, name: &str) -> Result<()> {
        self.instance(name)?.start().await
    }

    pub(super) async fn pea(&self, name: &str) -> Result<()> {
        self.instance(name)?.pea().await.map(drop)
    }

    pub(super) async fn verify(&self, name: &str, sample: &Sample) -> Result<()> {
        self.instance(name)?.verify(sample).await
    }

    pub(super) async fn inside(&self, name: &str, words: &[&str]) -> Result<()> {
        let (path, args) = words.split_first().context("no command")?;
        let ended = self.instance(name)?.run(path, args, "", false).await?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status == 0, "{path} in {name} ended with {}: {}", ended.status, said.trim());
        Ok(())
    }

    pub(super) async fn destroy(&self, name: &str) -> Result<()> {
        self.instance(name)?.destroy().await?;
        self.made.borrow_mut().remove(name);
        Ok(())
    }

    /// Waits until what was destroyed is deleted, as far as that can be seen.
    pub(super) async fn settle(&self) -> Result<()> {
        match &self.local {
            Some(local) => local.trash_empty().await,
            None => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(())
            }
        }
    }

    /// Destroys what is left, and the server if it is ours.
    pub(super) async fn clear(self, cut_off: bool) -> Result<()> {
        if let Some(local) = self.local {
            return local.stop().await;
        }
        let left: Vec<String> = self.made.into_inner().into_keys().collect();
        if cut_off && !left.is_empty() {
            // An interrupted request may still be running in the server.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut cleared = Ok(());
        for handle in left {
            if let Err(error) = self.client.destroy(&handle).await
                && error.kind() != Some(ErrorKind::ContainerNotFound)
            {
                cleared = Err(error).with_context(|| format!("destroy what is left of {handle}"));
            }
        }
        cleared
    }
}
