// The victim in plain JavaScript: its feature for one crop, and the gradient of a score of that feature to the pixels.
// The same file runs in Node and in a worker. A map is a Float32Array of [row][column][channel].

/**
 * @typedef {{in: number, out: number, kernel: number, stride: number, weight: Float32Array, back: Float32Array,
 *   bias: Float32Array}} Conv weight: [kernel][kernel][in][out]; back: [kernel][kernel][out][in]
 * @typedef {{data: Float32Array, rows: number, columns: number, channels: number}} Maps
 * @typedef {{kind: "residual", first: Conv, second: Conv, shortcut?: Conv} |
 *   {kind: "non-local", theta: Conv, phi: Conv, g: Conv, W: Conv}} Block
 * @typedef {{mean: number[], std: number[], stems: {visible: Conv, infrared: Conv}, blocks: Block[], gem_p: number,
 *   factor: Float32Array, shift: Float32Array, dimension: number}} Network
 * @typedef {{feature: Float32Array, back: (score: Float32Array) => Float32Array}} Pass
 */

/**
 * Returns the network that a manifest describes, its weights as floats.
 * @param {object} described manifest.network
 * @param {ArrayBuffer} weights weights.bin, inflated
 * @returns {Network}
 */
export function build(described, weights) {
  const floats = (at, count) => new Float32Array(weights, at, count);
  const conv = (found) => {
    const taps = found.kernel ** 2, cin = found.in, cout = found.out;
    const levels = new Int8Array(weights, found.levels, taps * cin * cout), scale = floats(found.scale, cout);
    const weight = new Float32Array(levels.length), back = new Float32Array(levels.length);
    for (let t = 0, p = 0; t < taps; t++)
      for (let c = 0; c < cin; c++)
        for (let o = 0; o < cout; o++, p++)
          back[(t * cout + o) * cin + c] = weight[p] = levels[p] * scale[o];
    return { ...found, weight, back, bias: floats(found.bias, cout) };
  };
  const block = ({ kind, ...convs }) =>
    ({ kind, ...Object.fromEntries(Object.entries(convs).map(([name, found]) => [name, conv(found)])) });
  const { factor, shift, dimension, stems, blocks } = described;
  return {
    ...described, stems: { visible: conv(stems.visible), infrared: conv(stems.infrared) }, blocks: blocks.map(block),
    factor: floats(factor, dimension), shift: floats(shift, dimension),
  };
}

/** Adds to `to`, from `at`, the product of `count` numbers of `from` with a matrix whose rows are `width` long. */
function product(to, at, width, from, start, count, matrix, base) {
  let c = 0;
  for (; c + 3 < count; c += 4) {
    const a = from[start + c], b = from[start + c + 1], d = from[start + c + 2], e = from[start + c + 3];
    if (a === 0 && b === 0 && d === 0 && e === 0) continue; // after a ReLU half of all are
    let p = base + c * width, q = p + width, r = q + width, s = r + width;
    for (let o = at; o < at + width; o++) to[o] += a * matrix[p++] + b * matrix[q++] + d * matrix[r++] + e * matrix[s++];
  }
  for (; c < count; c++) {
    const a = from[start + c];
    for (let o = at, p = base + c * width; o < at + width; o++) to[o] += a * matrix[p++];
  }
}

/** Calls `visit(output position, input position, tap)` for each tap that lies inside the map. */
function taps(conv, rows, columns, visit) {
  const { kernel, stride } = conv, pad = kernel >> 1, high = Math.ceil(rows / stride), wide = Math.ceil(columns / stride);
  for (let i = 0; i < high; i++)
    for (let j = 0; j < wide; j++)
      for (let u = 0; u < kernel; u++) {
        const y = i * stride + u - pad;
        if (y < 0 || y >= rows) continue;
        for (let v = 0; v < kernel; v++) {
          const x = j * stride + v - pad;
          if (x >= 0 && x < columns) visit(i * wide + j, y * columns + x, u * kernel + v);
        }
      }
}

/** @param {Conv} conv @param {Maps} maps @returns {Maps} */
function convolve(conv, maps) {
  const rows = Math.ceil(maps.rows / conv.stride), columns = Math.ceil(maps.columns / conv.stride);
  const data = new Float32Array(rows * columns * conv.out), { in: cin, out, weight } = conv;
  for (let at = 0; at < data.length; at += out) data.set(conv.bias, at);
  taps(conv, maps.rows, maps.columns, (to, from, tap) =>
    product(data, to * out, out, maps.data, from * cin, cin, weight, tap * cin * out));
  return { data, rows, columns, channels: out };
}

/** Adds to `into`, the gradient at a convolution's input maps, what one at its output gives. */
function convolveBack(conv, gradient, maps, into) {
  const { in: cin, out, back } = conv;
  taps(conv, maps.rows, maps.columns, (to, from, tap) =>
    product(into, from * cin, cin, gradient, to * out, out, back, tap * cin * out));
  return into;
}

const relu = (data) => { for (let i = 0; i < data.length; i++) if (data[i] < 0) data[i] = 0; };
const zeros = (maps) => new Float32Array(maps.data.length);

/** Sets a gradient to 0 where the ReLU that gave `data` let nothing through. */
const mask = (gradient, data) => { for (let i = 0; i < data.length; i++) if (data[i] <= 0) gradient[i] = 0; };

/** relu(second(relu(first(maps))) + shortcut(maps)), and its backward pass. */
function residual(block, maps) {
  const inner = convolve(block.first, maps);
  relu(inner.data);
  const out = convolve(block.second, inner), past = block.shortcut ? convolve(block.shortcut, maps) : maps;
  for (let i = 0; i < out.data.length; i++) out.data[i] += past.data[i];
  relu(out.data);
  const back = (gradient) => {
    mask(gradient, out.data);
    const within = convolveBack(block.second, gradient, inner, zeros(inner));
    mask(within, inner.data);
    const into = convolveBack(block.first, within, maps, zeros(maps));
    if (block.shortcut) return convolveBack(block.shortcut, gradient, maps, into);
    for (let i = 0; i < into.length; i++) into[i] += gradient[i];
    return into;
  };
  return [out, back];
}

/** maps + W(g phi^T / positions theta), as models.two_stream.NonLocal has it, and its backward pass. */
function nonLocal(block, maps) {
  const [theta, phi, g] = [block.theta, block.phi, block.g].map((conv) => convolve(conv, maps));
  const inner = theta.channels, positions = maps.rows * maps.columns, matrix = new Float32Array(inner * inner);
  /** to[a][b] = sum over positions of left[n][a] right[n][b] / divisor */
  const outer = (left, right, divisor) => {
    const sums = new Float64Array(inner * inner);
    for (let n = 0; n < positions; n++)
      for (let a = 0; a < inner; a++)
        for (let b = 0; b < inner; b++) sums[a * inner + b] += left[n * inner + a] * right[n * inner + b];
    return sums.map((sum) => sum / divisor);
  };
  /** to[n][a] = sum over b of weights(a, b) from[n][b] */
  const mix = (from, weights) => {
    const to = new Float32Array(positions * inner);
    for (let n = 0; n < positions; n++)
      for (let a = 0; a < inner; a++)
        for (let b = 0; b < inner; b++) to[n * inner + a] += weights(a, b) * from[n * inner + b];
    return to;
  };
  matrix.set(outer(g.data, phi.data, positions));
  const attended = { ...theta, data: mix(theta.data, (a, b) => matrix[a * inner + b]) };
  const out = convolve(block.W, attended);
  for (let i = 0; i < out.data.length; i++) out.data[i] += maps.data[i];
  const back = (gradient) => {
    const arrived = convolveBack(block.W, gradient, attended, zeros(attended));
    const inMatrix = outer(arrived, theta.data, positions), into = Float32Array.from(gradient);
    convolveBack(block.theta, mix(arrived, (a, b) => matrix[b * inner + a]), maps, into);
    convolveBack(block.g, mix(phi.data, (a, b) => inMatrix[a * inner + b]), maps, into);
    return convolveBack(block.phi, mix(g.data, (a, b) => inMatrix[b * inner + a]), maps, into);
  };
  return [out, back];
}

/**
 * Returns a crop's feature, of length 1, and the backward pass: from the gradient of a score with respect to the
 * feature to its gradient with respect to the pixels.
 * @param {Network} network
 * @param {Float32Array} image pixels in [0, 1], [row][column][3]
 * @param {number} rows @param {number} columns
 * @param {"visible" | "infrared"} spectrum
 * @returns {Pass}
 */
export function run(network, image, rows, columns, spectrum) {
  const { mean, std, gem_p: p, dimension, factor, shift } = network, stem = network.stems[spectrum];
  const pixels = { data: image.map((value, i) => (value - mean[i % 3]) / std[i % 3]), rows, columns, channels: 3 };
  const first = convolve(stem, pixels), backs = [];
  relu(first.data);
  let maps = first;
  for (const block of network.blocks) {
    const [out, back] = (block.kind === "residual" ? residual : nonLocal)(block, maps);
    backs.push(back);
    maps = out;
  }
  const last = maps, positions = last.rows * last.columns, sums = new Float64Array(dimension);
  for (let i = 0; i < last.data.length; i++) if (last.data[i] > 0) sums[i % dimension] += last.data[i] ** p;
  const powers = sums.map((sum) => sum / positions + 1e-12);
  const embedding = powers.map((power, c) => power ** (1 / p) * factor[c] + shift[c]);
  const length = Math.sqrt(embedding.reduce((sum, value) => sum + value * value, 0));
  const feature = Float32Array.from(embedding, (value) => value / length);
  const back = (score) => {
    const along = feature.reduce((sum, value, c) => sum + value * score[c], 0), gradient = zeros(last);
    const pooled = powers.map((power, c) =>
      ((score[c] - along * feature[c]) / length) * factor[c] * power ** (1 / p - 1) / positions);
    for (let i = 0; i < gradient.length; i++)
      if (last.data[i] > 0) gradient[i] = pooled[i % dimension] * last.data[i] ** (p - 1);
    const arrived = backs.reduceRight((found, step) => step(found), gradient);
    mask(arrived, first.data);
    const into = convolveBack(stem, arrived, pixels, zeros(pixels));
    return into.map((value, i) => value / std[i % 3]);
  };
  return { feature, back };
}
