// Downloads come out of the page itself.
const downloads = (() => {
  const TYPES = { csv: "text/csv", json: "application/json" };

  async function save(name) {
    const files = JSON.parse(await unpack("data"));
    const blob = new Blob([files[name]], { type: TYPES[name.split(".").pop()] });
    const link = element("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function start() {
    for (const button of all("button[data-download]")) {
      button.addEventListener("click", () => save(button.dataset.download));
    }
  }

  return { start };
})();
