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

// The text of a packed script element (gzip, base64).
async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  const packed = new ReadableStream({
    start(controller) {
      controller.enqueue(bytes);
      controller.close();
    },
  });
  return new Response(packed.pipeThrough(new DecompressionStream("gzip"))).text();
}

// Resolves when the page has nothing else to do.
const idle = () => new Promise((resolve) => (window.requestIdleCallback ?? setTimeout)(resolve));
