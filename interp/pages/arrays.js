// Arrays as interp/pages/packing.py packs them: unpacked when first asked for, then kept.

const TYPES = { f4: Float32Array, i1: Int8Array };
const unpackedArrays = new WeakMap();

async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// A promise of {values, shape}.
function unpacked(packed) {
  if (!unpackedArrays.has(packed)) {
    const array = inflated(packed.data).then((buffer) => ({
      values: new TYPES[packed.dtype](buffer),
      shape: packed.shape,
    }));
    unpackedArrays.set(packed, array);
  }
  return unpackedArrays.get(packed);
}

// What is left of an array at the first indices: a view, not a copy.
function at(array, ...indices) {
  const size = array.shape.slice(indices.length).reduce((a, b) => a * b, 1);
  let start = 0;
  indices.forEach((one, k) => {
    start = start * array.shape[k] + one;
  });
  return array.values.subarray(start * size, (start + 1) * size);
}

// Values of a map that was rounded to steps of its largest one: see `rounded` in packing.py.
async function steps(map, ...indices) {
  const limit = at(await unpacked(map.limits), ...indices)[0];
  return { values: Float32Array.from(at(await unpacked(map.steps), ...indices), (one) => (one / 127) * limit), limit };
}

// Values of one image's tokens on its cells.
function onGrid(values, image, offset = (token) => token) {
  const grid = new Float32Array(image.rows * image.columns);
  image.cell.forEach((cell, k) => {
    grid[cell] += values[offset(image.token[k])] * image.share[k];
  });
  return grid;
}

const total = (values) => values.reduce((a, b) => a + b, 0);
const largest = (values) => values.reduce((a, b) => (Math.abs(b) > a ? Math.abs(b) : a), 0);
