// What the reader has set stands in the address, so that a link shows it again: "#frontier&theme=dark&sort=step.up".
// The first part without a value is the place on the page. "#dark" is a theme. Only a jump is a step of the history:
// the back button undoes it with what was set since, and the forward button shows both again.
const state = (() => {
  const PLACE = "";
  const appliers = new Map(); // key to the function that is given its values when the address changes

  function parsed() {
    const found = new Map();
    for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
      if (value) found.set(key, [...(found.get(key) ?? []), value]);
      else if (key === "dark" || key === "light") found.set("theme", [key]);
      else found.set(PLACE, [key]);
    }
    return found;
  }

  function address(found) {
    const settings = new URLSearchParams();
    for (const [key, values] of found) {
      if (key !== PLACE) for (const value of values) settings.append(key, value);
    }
    const place = (found.get(PLACE) ?? []).map(encodeURIComponent);
    const parts = [...place, settings.toString()].filter(Boolean).join("&");
    return parts ? `#${parts}` : location.href.split("#")[0];
  }

  const readAll = (key) => parsed().get(key) ?? [];
  const read = (key) => readAll(key)[0] ?? null;

  // null, "" or [] takes the key away. Call it when a change is finished, not while a slider moves: browsers
  // refuse a page that writes its address hundreds of times.
  function write(key, value) {
    const values = (Array.isArray(value) ? value : [value]).filter((one) => one !== null && one !== "").map(String);
    const found = parsed();
    if (values.length) found.set(key, values);
    else found.delete(key);
    history.replaceState(null, "", address(found));
  }

  // Calls apply(value or null, values) now, and again when a link or the back button changed the address.
  function on(key, apply) {
    appliers.set(key, apply);
    apply(read(key), readAll(key));
  }

  function scrollToPlace() {
    const target = byId(read(PLACE) ?? "");
    if (!target) return;
    target.scrollIntoView();
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
  }

  function follow(event) {
    const link = event.target.closest('a[href^="#"]');
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState(null, "", address(parsed().set(PLACE, [decodeURIComponent(link.hash.slice(1))])));
    scrollToPlace();
  }

  function start() {
    document.addEventListener("click", follow);
    addEventListener("hashchange", () => {
      for (const [key, apply] of appliers) apply(read(key), readAll(key));
      scrollToPlace();
    });
    if (read(PLACE)) scrollToPlace();
  }

  return { read, readAll, write, on, start };
})();
