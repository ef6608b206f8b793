// What every other file uses. All files of this directory are one script in one closure, page.js first and start.js
// last; a file that is a concern of its own is one constant, and does nothing until start.js starts it.
const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// The text of a packed script element (gzip, base64). A loop, as a callback for each of a million bytes is slow.
async function unpack(id) {
  const characters = atob(byId(id).textContent);
  const bytes = new Uint8Array(characters.length);
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = characters.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// Resolves when the page has nothing else to do.
const idle = () => new Promise((resolve) => (window.requestIdleCallback ?? setTimeout)(resolve));
