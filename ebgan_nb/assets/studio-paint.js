// The source, to be painted over. While a stroke is drawn nothing travels: the mask is sent once, when the pointer is lifted.
// Traits: image, alt, side (pixels), region and painted (masks as text), brush, download (files to hand over, as JSON).

const make = (tag, props = {}, ...children) => {
  const e = Object.assign(document.createElement(tag), props)
  e.append(...children)
  return e
}

// a mask as text: one bit a pixel, row by row, in base64; `mask_text` and `text_mask` are the same in Python
const unpack = (text, n) => {
  const bytes = atob(text), mask = new Uint8Array(n*n)
  for (let i = 0; i < n*n && i>>3 < bytes.length; i++) mask[i] = bytes.charCodeAt(i>>3) >> (7 - i%8) & 1
  return mask
}
const pack = mask => {
  if (!mask.some(v => v)) return ''
  const bytes = new Uint8Array(Math.ceil(mask.length/8))
  mask.forEach((v, i) => { if (v) bytes[i>>3] |= 128 >> i%8 })
  return btoa(Array.from(bytes, c => String.fromCharCode(c)).join(''))
}

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}
const ORANGE = [232, 93, 4, 150], BLUE = [30, 120, 255, 56] // what is painted; the parts that are pressed

function render({ model, el }) {
  const button = (text, title) => make('button', {type: 'button', textContent: text, title})
  const img = make('img', {alt: 'source', draggable: false, decoding: 'sync'})
  const canvas = make('canvas', {tabIndex: 0}), ctx = canvas.getContext('2d')
  const size = make('input', {type: 'range', min: 1, max: 30, value: model.get('brush'), title: 'Width of the brush'})
  const erase = button('Erase', 'Rub out what is painted (or hold Shift)')
  const undo = button('Undo stroke', 'Take back the last stroke')
  const clear = button('Clear', 'Rub out everything that is painted')
  canvas.setAttribute('role', 'application')
  canvas.setAttribute('aria-label', 'Paint over the source: drag, or move with the arrow keys and press space')
  erase.setAttribute('aria-pressed', false)

  let n = 1, mask, region      // pixels of a side; what is painted, and which parts are pressed
  let past = []                // masks before each stroke, the newest last
  let last = null, at = null   // where the pointer was; where the keyboard's brush is
  let rubbing = false
  const radius = () => size.value*n/256
  const erasing = e => e.shiftKey || erase.getAttribute('aria-pressed') === 'true'

  // what is seen
  const show = () => {
    const d = ctx.createImageData(n, n)
    for (let i = 0; i < n*n; i++) if (mask[i] || region[i]) d.data.set(mask[i] ? ORANGE : BLUE, 4*i)
    ctx.putImageData(d, 0, 0)
    if (!at || document.activeElement !== canvas) return
    ctx.strokeStyle = '#fff'; ctx.beginPath(); ctx.arc(...at, radius(), 0, 7); ctx.stroke()
  }

  // the brush: a dab is a disc, a dash is a row of them one pixel apart, so that a fast pointer leaves no gaps
  const dab = (x, y) => {
    const r = radius(), low = v => Math.max(0, Math.floor(v - r)), high = v => Math.min(n, v + r)
    for (let j = low(y); j < high(y); j++) for (let i = low(x); i < high(x); i++)
      if ((i + .5 - x)**2 + (j + .5 - y)**2 <= r*r + .3) mask[j*n + i] = rubbing ? 0 : 1
  }
  const dash = ([x, y], [u, v]) => {
    const k = Math.max(1, Math.ceil(Math.hypot(u - x, v - y)))
    for (let t = 1; t <= k; t++) dab(x + (u - x)*t/k, y + (v - y)*t/k)
  }
  const begin = () => { past = [...past.slice(-49), mask.slice()] }
  const send = () => { show(); model.set('painted', pack(mask)); model.save_changes() }
  const place = e => { const b = canvas.getBoundingClientRect(); return [(e.clientX - b.left)*n/b.width, (e.clientY - b.top)*n/b.height] }

  // by mouse, pen or finger
  canvas.onpointerdown = e => {
    if (e.button) return
    e.preventDefault(); canvas.focus({preventScroll: true}); canvas.setPointerCapture(e.pointerId)
    begin(); at = null; rubbing = erasing(e); last = place(e); dab(...last); show()
  }
  canvas.onpointermove = e => { if (last) { const p = place(e); dash(last, p); last = p; show() } }
  canvas.onpointerup = canvas.onpointercancel = () => { if (last) { last = null; send() } }

  // by keyboard; the notebook must not see these keys, it would walk to another cell
  canvas.onkeydown = e => {
    const step = ARROWS[e.key]
    if (!step && e.key !== ' ') return
    e.preventDefault(); e.stopPropagation()
    at = at || [n/2, n/2]
    if (step) at = at.map((v, k) => Math.min(n, Math.max(0, v + step[k]*n/64)))
    else { begin(); rubbing = erasing(e); dab(...at); send() }
    show()
  }
  canvas.onblur = () => show()

  erase.onclick = () => erase.setAttribute('aria-pressed', erase.getAttribute('aria-pressed') !== 'true')
  undo.onclick = () => { if (past.length) { mask = past.pop(); send() } }
  clear.onclick = () => { if (mask.some(v => v)) { begin(); mask = new Uint8Array(n*n); send() } }

  // what Python says
  const told = () => {
    region = unpack(model.get('region'), n)
    if (!last) mask = unpack(model.get('painted'), n) // not in the middle of a stroke
    show()
  }
  const fresh = () => {
    n = canvas.width = canvas.height = model.get('side')
    img.src = model.get('image'); img.alt = model.get('alt'); past = []
    told()
  }
  const hand_over = () => { for (const [name, url] of JSON.parse(model.get('download') || '[]')) make('a', {download: name, href: url}).click() }
  const listen = {'change:image': fresh, 'change:side': fresh, 'change:region': told, 'change:painted': told, 'change:download': hand_over}
  for (const [k, f] of Object.entries(listen)) model.on(k, f)

  fresh()
  el.append(make('div', {className: 'eb-stack'}, img, canvas),
            make('div', {className: 'eb-tools'}, make('label', {}, 'Brush ', size), erase, undo, clear))
  return () => { for (const [k, f] of Object.entries(listen)) model.off(k, f) }
}

export default { render }
