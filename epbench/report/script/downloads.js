// Downloads come out of the page itself.
const downloads = (() => {
  const KEPT_MS = 60_000; // browsers read the file after the click, some much later
  const TYPES = { csv: "text/csv", json: "application/json" };

  async function save(name) {
    const files = JSON.parse(await unpack("data"));
    const blob = new Blob([files[name]], { type: TYPES[name.split(".").pop()] });
    const link = element("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), KEPT_MS);
  }

  async function clicked(button) {
    const place = button.closest(".downloads");
    place.querySelector("[role=alert]")?.remove();
    try {
      await save(button.dataset.download);
    } catch (error) {
      const text = `${button.textContent} cannot be saved in this browser (${error.message}).`;
      place.append(element("span", { className: "reason", role: "alert" }, text));
    }
  }

  function start() {
    for (const button of all("button[data-download]")) {
      button.addEventListener("click", () => clicked(button));
    }
  }

  return { start };
})();
